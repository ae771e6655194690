//! Mutations without guidance, always the same for one seed.

/// What often breaks readers.
const HOSTILE: [&[u8]; 16] = [
    b"\0",
    b"\x1b[31m",
    b"\\u001b",
    "\u{202e}".as_bytes(),
    b"\\u202e",
    b"<script>alert(1)</script>",
    b"\\n",
    b"\\\"",
    b"-1",
    b"65536",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"[]",
    b"{}",
    &[b'a'; 253],
];

/// A source of numbers (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The one that begins with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or_default() % end.max(1)
    }
}

/// The input with one to four changes; parts of `other` may come in.
#[must_use]
pub fn mutated(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        change(&mut bytes, other, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let hostile = HOSTILE[random.below(HOSTILE.len())];
    let (start, length) = (random.below(bytes.len() + 1), random.below(16));
    let end = (start + length).min(bytes.len());
    match random.below(7) {
        0 => {
            if let Some(byte) = bytes.get_mut(start) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => drop(bytes.drain(start..end)),
        2 => {
            let part = bytes[start..end].to_vec();
            bytes.splice(start..start, part);
        }
        3 => {
            let from = random.below(other.len() + 1);
            let part = &other[from..(from + 64).min(other.len())];
            bytes.splice(start..end, part.iter().copied());
        }
        4 => drop(bytes.splice(start..start, hostile.iter().copied())),
        // What stands between two quotes or other marks becomes something else.
        5 | 6 => {
            let is_mark = |byte: &u8| b"\":,[]{}\n".contains(byte);
            let Some(from) = bytes[start..].iter().position(is_mark) else {
                return;
            };
            let from = start + from + 1;
            let to = bytes[from..].iter().position(is_mark);
            let to = to.map_or(bytes.len(), |length| from + length);
            bytes.splice(from..to, hostile.iter().copied());
        }
        _ => {}
    }
}
