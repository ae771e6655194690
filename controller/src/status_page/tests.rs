use super::*;

fn service(name: &str, state: State, why: &[&str]) -> ServiceLine {
    ServiceLine {
        service: name.parse().unwrap(),
        state,
        ports: vec!["80/TCP".to_owned()],
        addresses: vec!["192.0.2.11".to_owned()],
        why: why.iter().map(ToString::to_string).collect(),
    }
}

fn overview() -> Overview {
    Overview {
        leader: Some("c1".to_owned()),
        services: vec![
            service("shop/web", State::Served, &[]),
            service(
                "shop/late",
                State::Conflict,
                &["80/TCP is held by <script>alert(1)</script> & \"friends\""],
            ),
        ],
        nodes: vec![NodeLine {
            node: "n1".to_owned(),
            state: NodeState::Ready,
            why: "the node forwards".to_owned(),
            proxy_mode: Some("nftables"),
            addresses: vec!["192.0.2.11".to_owned()],
            services: 1,
            ports: 1,
            refused: vec!["80/TCP of shop/late is held by Service shop/web".to_owned()],
        }],
        other_nodes: 2,
        ports: vec![PortLine {
            port: "80/TCP".to_owned(),
            held_by: vec![("shop/web".parse().unwrap(), 1)],
            refused: vec![("shop/late".parse().unwrap(), 1)],
        }],
        ..Overview::default()
    }
}

fn html(overview: Overview, filter: &str) -> String {
    Page::new(overview, filter).render().unwrap()
}

#[test]
fn texts_of_others_are_only_text() {
    let page = html(overview(), "");
    assert!(!page.contains("<script>alert"), "{page}");
    assert!(
        page.contains("&#60;script&#62;alert(1)&#60;/script&#62; &#38; &#34;friends&#34;"),
        "{page}"
    );
    let page = html(overview(), "\"><script>x</script>");
    assert!(!page.contains("<script>x"), "{page}");
}

#[test]
fn a_filter_leaves_the_lines_that_it_is_in() {
    let rows = |filter| {
        html(overview(), filter)
            .matches("<th scope=\"row\">")
            .count()
    };
    assert_eq!(rows(""), 4);
    assert_eq!(
        rows("SHOP/LATE"),
        3,
        "its Service, the node that refuses it, the port"
    );
    assert_eq!(rows("nftables"), 1);
    assert_eq!(rows("nothing has this"), 0);
    // What is in all stays said.
    assert!(html(overview(), "nftables").contains("2 in all, 1 <a"));
}

#[test]
fn what_is_not_known_yet_is_said() {
    let mut unknown = overview();
    unknown.incomplete = vec!["Leases"];
    unknown.leader = None;
    let page = html(unknown, "");
    assert!(
        page.contains("the first list of Leases is not complete"),
        "{page}"
    );
    assert!(page.contains("Leader: none"), "{page}");
}

#[test]
fn the_same_is_there_as_text() {
    let text = overview().to_string();
    let expected = "\
leader: c1
Services: 2, 1 served, 1 conflict

SERVICE    STATE     PORTS   ADDRESSES   WHY
shop/web   served    80/TCP  192.0.2.11
shop/late  conflict  80/TCP  192.0.2.11  80/TCP is held by <script>alert(1)</script> & \"friends\"

NODE  STATE  SERVICES  PROXY     WHY, AND WHAT IT REFUSES
n1    ready  1         nftables  the node forwards; 80/TCP of shop/late is held by Service shop/web
2 nodes have not opted in: kubectl label node NAME highwire.dev/enabled=true

PORT    HELD BY               REFUSED TO
80/TCP  shop/web (1 address)  shop/late (1 node)
";
    assert_eq!(text, expected);
}
