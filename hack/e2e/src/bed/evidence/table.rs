//! What a listing of our nftables table says in few lines. Pure.

use std::collections::BTreeMap;

/// Elements of a set that are printed; a test with more of them seldom fails by one.
const MOST_ELEMENTS: usize = 24;

/// The counters that have counted, and the sets and maps that are not empty, a line or a few
/// each. Of a map of buckets it says how many of them each target has. The chains are left
/// out: they are the same for every Service.
pub(super) fn summary(listing: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for block in blocks(listing) {
        let text = block.lines.join(" ");
        match block.kind {
            "counter" if !text.starts_with("packets 0 ") => {
                lines.push(format!("counter {}: {text}", block.name));
            }
            "set" | "map" => lines.extend(of_set(&block, &text)),
            _ => {}
        }
    }
    lines
}

/// `kind name { … }` within the table.
struct Block<'a> {
    kind: &'a str,
    name: &'a str,
    lines: Vec<&'a str>,
}

fn blocks(listing: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    // The first line opens the table.
    for line in listing.lines().skip(1).map(str::trim) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(kind), Some(name), Some("{"), None) => blocks.push(Block {
                kind,
                name,
                lines: Vec::new(),
            }),
            (Some("}") | None, ..) => {}
            _ => blocks
                .last_mut()
                .into_iter()
                .for_each(|it| it.lines.push(line)),
        }
    }
    blocks
}

fn of_set(block: &Block<'_>, text: &str) -> Vec<String> {
    let Some((_, elements)) = text.split_once("elements = {") else {
        return Vec::new();
    };
    let elements = elements.trim_end_matches('}').split(',').map(str::trim);
    let is_chosen_by_number = text.contains(" numgen ");
    let elements: Vec<String> = match is_chosen_by_number {
        true => buckets(elements),
        false => elements.map(str::to_owned).collect(),
    };
    let (name, count) = (block.name, elements.len());
    let mut lines = vec![format!("{} {name}:", block.kind)];
    lines.extend(
        elements
            .into_iter()
            .take(MOST_ELEMENTS)
            .map(|it| format!("  {it}")),
    );
    if count > MOST_ELEMENTS {
        lines.push(format!("  … and {} more", count - MOST_ELEMENTS));
    }
    lines
}

/// From `tcp . 80 . 17 : 10.244.1.4 . 8080`, of which 17 is the bucket, how many buckets each
/// target has.
fn buckets<'a>(elements: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for element in elements {
        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
        // That of a client that is remembered has its time after it.
        let key = key.split(" timeout ").next().unwrap_or(key);
        let port = key.rsplit_once(" . ").map_or(key, |(port, _)| port);
        *counts.entry((port, value)).or_default() += 1;
    }
    let line = |((port, target), count)| format!("{port} : {target} in {count} buckets");
    counts.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_many_buckets_each_target_has_and_leaves_out_what_is_empty() {
        let listing = "table inet highwire {
	counter listener {
		packets 0 bytes 0
	}

	counter rewrite {
		packets 90 bytes 5400
	}

	set node4 {
		typeof ip daddr
		elements = { 192.0.2.11,
			     192.0.2.12 }
	}

	set ports6 {
		typeof meta l4proto . th dport
	}

	map target4 {
		typeof meta l4proto . th dport . numgen random mod 1024 : ip daddr . th dport
		elements = { tcp . 80 . 0 : 10.244.2.4 . 8080,
			     tcp . 80 . 1 : 10.244.3.4 . 8080,
			     tcp . 80 . 2 : 10.244.2.4 . 8080,
			     tcp . 81 . 0 : 10.244.2.4 . 8080 }
	}

	map clientport6 {
		typeof meta l4proto . th dport . numgen random mod 65536 : th dport
		flags dynamic,timeout
		elements = { tcp . 80 . 5012 timeout 10s expires 3s12ms : 8080 }
	}

	chain prerouting {
		type filter hook prerouting priority -105; policy accept;
		meta l4proto vmap { tcp : accept }
	}
}
";
        let wanted = [
            "counter rewrite: packets 90 bytes 5400",
            "set node4:",
            "  192.0.2.11",
            "  192.0.2.12",
            "map target4:",
            "  tcp . 80 : 10.244.2.4 . 8080 in 2 buckets",
            "  tcp . 80 : 10.244.3.4 . 8080 in 1 buckets",
            "  tcp . 81 : 10.244.2.4 . 8080 in 1 buckets",
            "map clientport6:",
            "  tcp . 80 : 8080 in 1 buckets",
        ];
        assert_eq!(summary(listing), wanted);
    }

    #[test]
    fn a_set_with_many_elements_is_cut() {
        let elements: Vec<String> = (0..40).map(|it| format!("tcp . {it}")).collect();
        let elements = elements.join(",\n");
        let listing = format!(
            "table inet highwire {{\n\tset ports4 {{\n\t\telements = {{ {elements} }}\n\t}}\n}}"
        );
        let lines = summary(&listing);
        assert_eq!(lines.len(), 2 + MOST_ELEMENTS);
        assert_eq!(lines.last().unwrap(), "  … and 16 more");
    }
}
