//! Every target with every file of its corpus, and with mutations of them, always the same.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::{collections::BTreeSet, fs, panic::catch_unwind, path::Path};

use highwire_fuzz::{
    Target,
    mutate::{Random, mutated},
    targets::ALL,
};

/// Mutations of a target that takes microseconds for one …
const MUTATIONS: usize = 4_000;
/// … and of one that takes up to a thousand times as long.
const MUTATIONS_IF_SLOW: usize = 50;

#[test]
fn no_input_breaks_a_law() {
    let broken: Vec<String> = ALL.iter().filter_map(breaks).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The first input that breaks a law of the target, as text.
fn breaks(target: &Target) -> Option<String> {
    let corpus = target.corpus().unwrap();
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    let fails = |input: &[u8]| catch_unwind(|| (target.run)(input)).is_err();
    if let Some((path, _)) = corpus.iter().find(|(_, input)| fails(input)) {
        return Some(format!("{}: {}", target.name, path.display()));
    }
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mutations = if target.is_slow {
        MUTATIONS_IF_SLOW
    } else {
        MUTATIONS
    };
    let mut inputs = (0..mutations).map(|_| {
        let [one, other] = [0; 2].map(|_| &corpus[random.below(corpus.len())].1);
        mutated(one, other, &mut random)
    });
    let input = inputs.find(|input| fails(input))?;
    let shown = input.escape_ascii();
    Some(format!(
        "{}: printf '%b' '{shown}', which goes to the corpus",
        target.name
    ))
}

#[test]
fn every_folder_is_that_of_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folders = fs::read_dir(corpus).unwrap().map(|folder| {
        let name = folder.unwrap().file_name();
        name.into_string().unwrap()
    });
    let names = ALL.iter().map(|target| target.name.to_owned());
    assert_eq!(
        folders.collect::<BTreeSet<_>>(),
        names.collect::<BTreeSet<_>>()
    );
}
