//! SHA-256 that can be put aside and continued: the bytes that it began with may be gone from the disk by then.

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;

/// FIPS 180-4, section 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const BLOCK: usize = 64;

/// The digest of what was put in so far.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Running {
    state: [u32; 8],
    /// Its first `bytes % 64` are what fills no block yet; the others are zero.
    rest: [u8; BLOCK],
    bytes: u64,
}

impl Running {
    /// Bytes of [`Self::encode`].
    pub(super) const SIZE: usize = 8 * 4 + BLOCK + 8;

    pub(super) fn new() -> Self {
        Self { state: INITIAL, rest: [0; BLOCK], bytes: 0 }
    }

    /// Bytes that were put in.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn filled(&self) -> usize {
        (self.bytes % BLOCK as u64) as usize
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        let filled = self.filled();
        self.bytes += bytes.len() as u64;
        if filled > 0 {
            let taken = bytes.len().min(BLOCK - filled);
            self.rest[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if filled + taken < BLOCK {
                return;
            }
            compress256(&mut self.state, &[self.rest.into()]);
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            compress256(&mut self.state, &[*GenericArray::from_slice(block)]);
        }
        self.rest = [0; BLOCK];
        self.rest[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    }

    /// The digest, in hexadecimal.
    pub(super) fn hex(&self) -> String {
        let mut last = self.clone();
        // FIPS 180-4, section 5.1.1: a one, zeros, and the length in bits at the end of a block.
        let zeros = (2 * BLOCK - 9 - self.filled()) % BLOCK;
        let mut padding = vec![0; 1 + zeros];
        padding[0] = 0x80;
        padding.extend((self.bytes * 8).to_be_bytes());
        last.update(&padding);
        last.state.iter().map(|word| format!("{word:08x}")).collect()
    }

    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend(self.state.iter().flat_map(|word| word.to_le_bytes()));
        into.extend(self.rest);
        into.extend(self.bytes.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let mut digest = Self::new();
        for (word, bytes) in digest.state.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        digest.rest.copy_from_slice(&bytes[32..32 + BLOCK]);
        digest.bytes = u64::from_le_bytes(*bytes.last_chunk().expect("its size is fixed"));
        digest
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn it_is_sha_256_however_it_is_cut_and_put_aside() {
        let bytes: Vec<u8> = (0..1000_u32).map(|number| (number * 7 % 251) as u8).collect();
        for length in (0..200).chain([511, 512, 513, 1000]) {
            for step in [1, 3, 55, 63, 64, 65, 128, 1000] {
                let mut digest = Running::new();
                for part in bytes[..length].chunks(step) {
                    let mut aside = Vec::new();
                    digest.encode(&mut aside);
                    digest = Running::decode(aside.as_slice().try_into().unwrap());
                    digest.update(part);
                }
                assert_eq!(digest.hex(), format!("{:x}", Sha256::digest(&bytes[..length])), "{length} {step}");
                assert_eq!(digest.bytes(), length as u64);
            }
        }
    }
}
