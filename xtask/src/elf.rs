//! Proof that a binary is static: read from its program headers, not assumed from the flags that made it.
//!
//! Linkers turn a request for a static binary into a dynamic one without a word when a single object or flag does not
//! fit, and such a binary starts on the machine that built it and nowhere else.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::target::Target;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// Fails unless the file is a static executable for the target's processor.
pub(crate) fn assert_static(path: &Path, target: Target) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    check(&bytes, target).with_context(|| format!("{} cannot be shipped", path.display()))
}

fn check(bytes: &[u8], target: Target) -> Result<()> {
    if bytes.get(..4) != Some(b"\x7fELF") {
        bail!("it is not an ELF file");
    }
    // Both targets are 64 bit and little endian.
    if bytes.get(4..6) != Some(&[2, 1]) {
        bail!("it is not a 64-bit little-endian ELF file");
    }
    let machine = number(bytes, 18, 2)?;
    if machine != u64::from(target.elf_machine()) {
        bail!("it is for ELF machine {machine}, and {} is {}", target.short(), target.elf_machine());
    }
    let mut loads = 0;
    for header in program_headers(bytes)? {
        match header.kind {
            PT_LOAD => loads += 1,
            PT_INTERP => bail!("it is dynamically linked: it asks for an interpreter (PT_INTERP)"),
            PT_DYNAMIC if needs_libraries(bytes, &header)? => {
                bail!("it is dynamically linked: it asks for a shared library (DT_NEEDED)")
            }
            _ => {}
        }
    }
    if loads == 0 {
        bail!("it has nothing to load (no PT_LOAD)");
    }
    Ok(())
}

struct ProgramHeader {
    kind: u32,
    offset: usize,
    size: usize,
}

fn program_headers(bytes: &[u8]) -> Result<Vec<ProgramHeader>> {
    let table = to_size(number(bytes, 32, 8)?)?;
    let entry = to_size(number(bytes, 54, 2)?)?;
    let count = to_size(number(bytes, 56, 2)?)?;
    (0..count)
        .map(|index| {
            let at = index.checked_mul(entry).and_then(|at| at.checked_add(table)).context("a damaged ELF file")?;
            Ok(ProgramHeader {
                kind: u32::try_from(number(bytes, at, 4)?)?,
                offset: to_size(number(bytes, at.saturating_add(8), 8)?)?,
                size: to_size(number(bytes, at.saturating_add(32), 8)?)?,
            })
        })
        .collect()
}

fn needs_libraries(bytes: &[u8], header: &ProgramHeader) -> Result<bool> {
    for entry in (0..header.size).step_by(16) {
        match number(bytes, header.offset.saturating_add(entry), 8)? {
            DT_NULL => break,
            DT_NEEDED => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let field = at.checked_add(length).and_then(|end| bytes.get(at..end)).context("the ELF file is cut off")?;
    Ok(field.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

fn to_size(value: u64) -> Result<usize> {
    usize::try_from(value).context("a damaged ELF file")
}

#[cfg(test)]
mod tests {
    use super::{PT_DYNAMIC, PT_INTERP, PT_LOAD, check};
    use crate::target::Target;

    /// An ELF file with these program headers; the dynamic section, if any, lies behind them.
    fn elf(machine: u8, kinds: &[u32], dynamic: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(kinds.len()).unwrap();
        let section = 64 + 56 * kinds.len() as u64;
        for kind in kinds {
            bytes.extend(kind.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(section.to_le_bytes());
            bytes.extend([0; 16]);
            bytes.extend((dynamic.len() as u64 * 8).to_le_bytes());
            bytes.extend([0; 16]);
        }
        bytes.extend(dynamic.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    fn reason(bytes: &[u8]) -> String {
        check(bytes, Target::X86_64).unwrap_err().to_string()
    }

    #[test]
    fn accepts_static_executables() {
        check(&elf(62, &[PT_LOAD], &[]), Target::X86_64).unwrap();
        check(&elf(183, &[PT_LOAD], &[]), Target::Aarch64).unwrap();
        // A static PIE has a dynamic section that names no library.
        check(&elf(62, &[PT_LOAD, PT_DYNAMIC], &[5, 0, 0, 0, 1, 1]), Target::X86_64).unwrap();
    }

    #[test]
    fn rejects_an_interpreter() {
        assert!(reason(&elf(62, &[PT_LOAD, PT_INTERP], &[])).contains("PT_INTERP"));
    }

    #[test]
    fn rejects_a_shared_library_without_an_interpreter() {
        assert!(reason(&elf(62, &[PT_LOAD, PT_DYNAMIC], &[5, 0, 1, 7, 0, 0])).contains("DT_NEEDED"));
    }

    #[test]
    fn rejects_another_processor() {
        assert!(reason(&elf(183, &[PT_LOAD], &[])).contains("ELF machine 183"));
    }

    #[test]
    fn rejects_what_is_no_elf_file_or_cut_off() {
        assert!(reason(b"#!/bin/sh\n").contains("not an ELF"));
        assert!(reason(&elf(62, &[], &[])).contains("PT_LOAD"));
        let whole = elf(62, &[PT_LOAD, PT_DYNAMIC], &[5, 0]);
        // The last word is a value that nobody looks at.
        for length in 0..whole.len() - 8 {
            assert!(check(&whole[..length], Target::X86_64).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_test_itself_is_a_dynamic_executable() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let host = Target::host().unwrap();
        if cfg!(target_env = "gnu") {
            assert!(check(&bytes, host).unwrap_err().to_string().contains("dynamically linked"));
        }
    }
}
