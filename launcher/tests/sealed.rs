//! Files that leave the host, with everyone's `age` at the other end.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use launcher_wire::key::PoolKey;
use spacelift_launcher::sealed::{self, Error, Sealer};

const PROOF: &[u8] = b"-> spacelift-pool-proof";
const PURPOSE: &str = "the workspace of run 01J0";

/// A directory with `spacelift.key` and `other.key`, made as the product's documentation has it.
fn keys() -> &'static Path {
    static KEYS: OnceLock<PathBuf> = OnceLock::new();
    KEYS.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sealed");
        fs::create_dir_all(&directory).unwrap();
        for name in ["spacelift", "other"] {
            let at = |extension| directory.join(format!("{name}.{extension}"));
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-new", "-newkey", "rsa:4096", "-nodes", "-subj", "/CN=pool", "-keyout"]);
            run(openssl.arg(at("key")).arg("-out").arg(at("csr")), "openssl", b"");
        }
        directory
    })
}

fn key(name: &str) -> PoolKey {
    let pem = fs::read_to_string(keys().join(name)).unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"), "the documented command writes PKCS#8");
    PoolKey::from_pem(&pem).unwrap()
}

fn start(command: &mut Command, package: &str, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}. It is in the Debian package `{package}`"));
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // Whoever refuses its input closes it early.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn run(command: &mut Command, package: &str, input: &[u8]) -> Vec<u8> {
    let output = start(command, package, input);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(Vec::new(), &key("spacelift.key"), PURPOSE).unwrap();
    sealer.write_all(bytes).unwrap();
    sealer.finish().unwrap()
}

fn open(bytes: &[u8], name: &str) -> Result<Vec<u8>, Error> {
    // Reading a key takes longer than all the rest.
    static KEY: OnceLock<PoolKey> = OnceLock::new();
    let mut opened = Vec::new();
    let key = if name == "spacelift.key" { KEY.get_or_init(|| key(name)) } else { &key(name) };
    sealed::open(bytes, key, PURPOSE)?.read_to_end(&mut opened)?;
    Ok(opened)
}

/// Longer than two of the parts that `age` encrypts one by one.
fn plain() -> Vec<u8> {
    (0..150_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn stock_age_opens_what_the_launcher_encrypts() {
    for plain in [&plain()[..], b"", b"x"] {
        let mut age = Command::new("age");
        let opened = run(age.arg("-d").arg("-i").arg(keys().join("spacelift.key")), "age", &seal(plain));
        assert!(opened == plain, "{} bytes became {}", plain.len(), opened.len());
    }
    let mut age = Command::new("age");
    let refused = start(age.arg("-d").arg("-i").arg(keys().join("other.key")), "age", &seal(b"secret"));
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
}

#[test]
fn who_only_has_the_public_key_makes_nothing_that_is_opened() {
    // `-i` with `-e` takes the public half of the key.
    let mut age = Command::new("age");
    let sealed = run(age.arg("-e").arg("-i").arg(keys().join("spacelift.key")), "age", b"forged");
    assert!(matches!(open(&sealed, "spacelift.key"), Err(Error::NotProven { .. })));
    // With the proof of a file that a launcher made.
    let genuine = seal(b"x");
    let proof = genuine.windows(PROOF.len()).position(|bytes| bytes == PROOF).unwrap();
    let proof = genuine[proof..].split_inclusive(|&byte| byte == b'\n').take(2).collect::<Vec<_>>().concat();
    let end = sealed.windows(5).position(|bytes| bytes == b"\n--- ").unwrap() + 1;
    let forged = [&sealed[..end], &proof, &sealed[end..]].concat();
    assert!(matches!(open(&forged, "spacelift.key"), Err(Error::NotProven { .. })));
}

#[test]
fn a_file_opens_for_its_own_purpose() {
    let (sealed, key) = (seal(b"x"), key("spacelift.key"));
    for purpose in ["the workspace of run 01J1", "the outputs of run 01J0", ""] {
        let error = sealed::open(&sealed[..], &key, purpose).unwrap_err();
        assert!(matches!(error, Error::NotProven { .. }) && error.to_string().contains(purpose), "{error}");
    }
    assert!(sealed::open(&sealed[..], &key, PURPOSE).is_ok());
}

#[test]
fn a_header_without_an_end_is_not_read_for_ever() {
    let endless = b"age-encryption.org/v1\n".chain(b"-> grease x\n\n".repeat(100_000).leak() as &[u8]);
    let mut counted = endless.take(u64::MAX);
    assert!(matches!(sealed::open(&mut counted, &key("spacelift.key"), PURPOSE), Err(Error::Damaged { .. })));
    let read = u64::MAX - counted.limit();
    assert!(read <= 8 * 1024, "{read} bytes were read");
}

#[test]
fn another_key_is_told_from_damage() {
    assert!(matches!(open(&seal(b"x"), "other.key"), Err(Error::OtherKey)));
    for wrong in [&b""[..], b"age", b"age-encryption.org/v1\n", b"no such file\n", &seal(b"x")[..300]] {
        let error = open(wrong, "spacelift.key").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    }
}

#[test]
fn what_is_cut_off_or_changed_never_comes_to_its_end() {
    let plain = &plain()[..140_000];
    let sealed = seal(plain);
    let header = sealed.len() - plain.len() - 3 * 16;
    // Around every border of a part, where a reader could take an end for the end.
    let borders = [header, header + 65_552, header + 2 * 65_552, sealed.len()];
    let ends = borders.iter().flat_map(|&border| border.saturating_sub(40)..border + 40);
    for end in ends.filter(|&end| end < sealed.len()) {
        assert!(open(&sealed[..end], "spacelift.key").is_err(), "cut off at {end} of {}", sealed.len());
    }
    for place in [10, 300, header, header + 70_000, sealed.len() - 1] {
        let mut changed = sealed.clone();
        changed[place] ^= 1;
        assert!(open(&changed, "spacelift.key").is_err(), "changed at {place}");
    }
    assert!(open(&[&sealed[..], b"x"].concat(), "spacelift.key").is_err(), "something follows");
}

#[test]
fn a_file_that_was_not_finished_is_refused() {
    let mut sealer = Sealer::new(Vec::new(), &key("spacelift.key"), PURPOSE).unwrap();
    sealer.write_all(&plain()).unwrap();
    sealer.flush().unwrap();
    let whole = seal(&plain());
    // What a crash of the launcher leaves in the store: all parts but the last.
    let last = (plain().len() % 65_536) + 16;
    assert!(open(&whole[..whole.len() - last], "spacelift.key").is_err());
    drop(sealer);
}
