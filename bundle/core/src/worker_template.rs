//! The template of worker pools: a release pins in it who may sign the launcher that worker hosts run.
//!
//! The source has placeholders such as `@RELEASE_VERSION@` in the settings of a shell script, each exactly once. Packing
//! puts values into them and leaves out the script's comments and indentation, because the service limits its size.

use sequoia_openpgp::Cert;
use sequoia_openpgp::serialize::MarshalInto as _;

use crate::signature::Fingerprint;
use crate::version::ReleaseVersion;

/// Where a release has the template.
pub const PATH: &str = "cloudformation/workerpool.yaml";

/// EC2's limit on user data, in bytes before base64.
const USER_DATA_LIMIT: usize = 16384;
/// What of it is left to the settings of a pool: names of secrets and addresses of proxies.
const SETTINGS_ROOM: usize = 1536;
/// What precedes the script in the template; the script is its literal block.
const BLOCK: &str = "- |";

/// What is pinned.
#[derive(Debug, Clone, Copy)]
pub struct Pins<'a> {
    /// The release: hosts accept no launcher that is older.
    pub version: &'a ReleaseVersion,
    /// Who may sign. Without any, hosts refuse every launcher and say why.
    pub certificates: &'a [Cert],
    /// How many of them have to.
    pub threshold: u32,
}

/// Why the template cannot be part of a release.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not text.
    #[error("it is not UTF-8")]
    Encoding,
    /// A placeholder is missing or there are several.
    #[error("the placeholder {name} must be there exactly once and is there {count} times")]
    Count {
        /// The placeholder.
        name: &'static str,
        /// How often it is there.
        count: usize,
    },
    /// A placeholder that has no value.
    #[error("`{0}` is not a placeholder that packing knows")]
    Unknown(String),
    /// The placeholders are not in a literal block.
    #[error("the line before the script must be `- |`, and every placeholder must be in the script")]
    Script,
    /// A certificate cannot be written.
    #[error("the certificate {fingerprint} cannot be written: {reason}")]
    Certificate {
        /// Whose it is.
        fingerprint: Fingerprint,
        /// What the library said.
        reason: String,
    },
    /// The script does not fit.
    #[error(
        "the user data takes {size} bytes, and {} fit, because EC2 takes {USER_DATA_LIMIT} and {SETTINGS_ROOM} are for the \
         settings of a pool; pin fewer certificates or such with smaller keys (Ed25519)",
        USER_DATA_LIMIT - SETTINGS_ROOM
    )]
    TooLarge {
        /// Its length.
        size: usize,
    },
}

/// The template with its values.
///
/// # Errors
/// See [`Error`].
pub fn render(template: &[u8], pins: Pins<'_>) -> Result<Vec<u8>, Error> {
    let template = std::str::from_utf8(template).map_err(|_| Error::Encoding)?;
    let fingerprints: Vec<String> = pins.certificates.iter().map(|cert| Fingerprint::of(cert).to_string()).collect();
    let values = [
        ("@RELEASE_VERSION@", pins.version.to_string()),
        ("@RELEASE_KEYRING@", base64(&keyring(pins.certificates)?)),
        ("@RELEASE_FINGERPRINTS@", fingerprints.join(" ")),
        ("@RELEASE_THRESHOLD@", pins.threshold.to_string()),
    ];
    for (name, _) in &values {
        let count = template.matches(name).count();
        if count != 1 {
            return Err(Error::Count { name, count });
        }
    }
    let (before, script, after) = split(template)?;
    if before.contains("@RELEASE_") || after.contains("@RELEASE_") {
        return Err(Error::Script);
    }
    let mut script = shortened(script);
    for (name, value) in &values {
        script = script.replace(name, value);
    }
    if let Some(start) = script.find("@RELEASE_") {
        let rest = &script[start..];
        let end = rest[1..].find(|c: char| !c.is_ascii_uppercase() && c != '_').map_or(rest.len(), |end| end + 2);
        return Err(Error::Unknown(rest.get(..end).unwrap_or(rest).to_owned()));
    }
    let size = user_data_size(&script);
    if size > USER_DATA_LIMIT - SETTINGS_ROOM {
        return Err(Error::TooLarge { size });
    }
    Ok([before, &script, after].concat().into_bytes())
}

/// What is before the script, the script, and what follows.
fn split(template: &str) -> Result<(&str, &str, &str), Error> {
    let mut offset = 0;
    let mut start = None;
    let mut end = template.len();
    let mut indent = 0;
    let mut is_block = false;
    for line in template.split_inclusive('\n') {
        let text = line.trim();
        let depth = line.len() - line.trim_start_matches(' ').len();
        match start {
            None if is_block && text.contains("@RELEASE_") => {
                start = Some(offset);
                indent = depth;
            }
            Some(_) if !text.is_empty() && depth < indent => {
                end = offset;
                break;
            }
            _ => {}
        }
        is_block = text == BLOCK;
        offset += line.len();
    }
    let start = start.ok_or(Error::Script)?;
    Ok((&template[..start], &template[start..end], &template[end..]))
}

/// The script without what a shell does not need: lines that are nothing but a comment, and indentation. What is in a here
/// document stays as it is, but for comments.
fn shortened(script: &str) -> String {
    let indent = script.len() - script.trim_start_matches(' ').len();
    let mut short = String::with_capacity(script.len());
    let mut document: Option<&str> = None;
    for line in script.split_inclusive('\n') {
        let text = line.trim();
        // `#!` is not one.
        if text.starts_with("# ") {
            continue;
        }
        if document.is_some() || text.is_empty() {
            short.push_str(line);
        } else {
            short.push_str(&line[..indent]);
            short.push_str(line.trim_start());
        }
        match document {
            Some(end) if text == end => document = None,
            Some(_) => {}
            None => document = text.rsplit_once("<<").map(|(_, end)| end.trim_matches('\'')).filter(is_delimiter),
        }
    }
    short
}

/// Whether this ends a here document: a word of capitals at the end of the line, unlike the text of a here string.
fn is_delimiter(word: &&str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// The length of a literal block without its indentation.
fn user_data_size(block: &str) -> usize {
    let indent = block.len() - block.trim_start_matches(' ').len();
    block.split_inclusive('\n').map(|line| line.len().saturating_sub(indent).max(1)).sum()
}

/// The certificates in the form that gpgv reads, without what it does not need to check signatures of files.
fn keyring(certificates: &[Cert]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for cert in certificates {
        let signs = |signature: &sequoia_openpgp::packet::Signature| {
            signature.key_flags().is_none_or(|flags| flags.for_signing())
        };
        let slim = cert
            .clone()
            .retain_subkeys(|key| key.self_signatures().any(signs))
            .retain_user_attributes(|_| false)
            .strip_secret_key_material();
        let written = slim
            .export_to_vec()
            .map_err(|error| Error::Certificate { fingerprint: Fingerprint::of(cert), reason: error.to_string() })?;
        bytes.extend(written);
    }
    Ok(bytes)
}

/// Standard base64 with padding, on one line.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * position) & 63) as usize];
            text.push(if position <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use sequoia_openpgp::cert::CertBuilder;
    use sequoia_openpgp::cert::CipherSuite;

    use super::*;

    const TEMPLATE: &str = "\
Data:
  Join:
    - - Sub: |
          BUCKET='${Bucket}'
      # Plain from here on.
      - |
        VERSION='@RELEASE_VERSION@'
        KEYRING='@RELEASE_KEYRING@' PINS='@RELEASE_FINGERPRINTS@'
        THRESHOLD='@RELEASE_THRESHOLD@'

        # Why.
        if read -r line <<<\"$x\"; then
          cat >script <<'END'
        #!/bin/bash
          echo # not
        END
          true
        fi
Other: 1
";

    fn cert(suite: CipherSuite) -> Cert {
        let builder = CertBuilder::new().add_userid("test").set_cipher_suite(suite);
        builder.add_signing_subkey().add_transport_encryption_subkey().generate().unwrap().0
    }

    fn rendered(template: &str, certificates: &[Cert]) -> Result<String, Error> {
        let version = "v1.2.3".parse().unwrap();
        let pins = Pins { version: &version, certificates, threshold: 2 };
        render(template.as_bytes(), pins).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn placeholders_get_their_values() {
        let cert = cert(CipherSuite::Cv25519);
        let text = rendered(TEMPLATE, std::slice::from_ref(&cert)).unwrap();
        assert!(text.contains("VERSION='v1.2.3'\n"), "{text}");
        assert!(text.contains(&format!("PINS='{}'\n", Fingerprint::of(&cert))), "{text}");
        let rest = text.split_once("THRESHOLD='2'\n").unwrap().1;
        let lines = "\n        if read -r line <<<\"$x\"; then\n        cat >script <<'END'\n        #!/bin/bash\n          \
                     echo # not\n        END\n        true\n        fi\nOther: 1\n";
        assert_eq!(rest, lines);
        assert!(text.contains("      # Plain from here on.\n"), "comments of the template stay: {text}");
        assert!(!text.contains('@') && !text.contains("Why"), "{text}");
    }

    #[test]
    fn the_keyring_has_the_keys_that_sign_and_no_secret() {
        use sequoia_openpgp::parse::Parse as _;
        let cert = cert(CipherSuite::Cv25519);
        assert_eq!(cert.keys().subkeys().count(), 2);
        let kept = Cert::from_bytes(&keyring(std::slice::from_ref(&cert)).unwrap()).unwrap();
        assert_eq!(kept.fingerprint(), cert.fingerprint());
        assert_eq!(kept.keys().subkeys().count(), 1);
        assert!(!kept.is_tsk());
    }

    #[test]
    fn every_placeholder_is_needed_once() {
        for name in ["@RELEASE_VERSION@", "@RELEASE_KEYRING@", "@RELEASE_FINGERPRINTS@", "@RELEASE_THRESHOLD@"] {
            let missing = rendered(&TEMPLATE.replace(name, ""), &[]).unwrap_err();
            assert!(matches!(missing, Error::Count { count: 0, .. }), "{missing}");
            let twice = rendered(&TEMPLATE.replace(name, &name.repeat(2)), &[]).unwrap_err();
            assert!(matches!(twice, Error::Count { count: 2, .. }), "{twice}");
        }
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        let template = TEMPLATE.replace("echo #", "echo @RELEASE_DATE@ #");
        let error = rendered(&template, &[]).unwrap_err();
        assert!(matches!(&error, Error::Unknown(name) if name == "@RELEASE_DATE@"), "{error}");
    }

    #[test]
    fn placeholders_are_in_the_script() {
        let outside = format!("{}At: '@RELEASE_DATE@'\n", TEMPLATE);
        assert!(matches!(rendered(&outside, &[]).unwrap_err(), Error::Script));
        assert!(matches!(rendered(&TEMPLATE.replace("- |\n", "- >\n"), &[]).unwrap_err(), Error::Script));
    }

    #[test]
    fn user_data_that_ec2_would_refuse_is_refused() {
        let certificates: Vec<Cert> = (0..20).map(|_| cert(CipherSuite::Cv25519)).collect();
        let error = rendered(TEMPLATE, &certificates).unwrap_err();
        assert!(matches!(error, Error::TooLarge { size } if size > 14848), "{error}");
    }

    #[test]
    fn the_template_of_this_workspace_has_room_for_the_current_and_the_next_signer() {
        let template = include_str!("../../../cloudformation/workerpool.yaml");
        let certificates: Vec<Cert> = (0..2).map(|_| cert(CipherSuite::Cv25519)).collect();
        rendered(template, &certificates).unwrap();
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }
}
