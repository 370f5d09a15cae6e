//! Inputs that a search found worth keeping, and changed ones of each: what `cargo xtask fuzz` does for as long as it is told to.

use std::fs;

use integration_tests::fuzz::TARGETS;
use integration_tests::random::Random;
use integration_tests::release::workspace;
use integration_tests::tree;

/// Changes of each input.
const CHANGES: u64 = 1000;

fn changed(random: &mut Random, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, b"{}[]\"\n\\/:%$*\0-0"[random.below(15) as usize]),
            _ => {
                let from = random.below(bytes.len() as u64 + 1) as usize;
                let part = bytes[from..bytes.len().min(from + 40)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

#[test]
fn no_input_does_harm() {
    for (name, target) in TARGETS {
        let corpus = tree::entries(&workspace().join("tests/data/fuzz").join(name));
        assert!(!corpus.is_empty(), "there is nothing for {name}");
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for file in corpus {
            let input = fs::read(&file).unwrap();
            target(&input);
            for _ in 0..CHANGES {
                target(&changed(&mut random, &input));
            }
        }
    }
}
