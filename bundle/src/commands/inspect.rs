//! `inspect`

use std::fs;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use bundle_core::Cert;
use bundle_core::contents::Contents;
use bundle_core::inspect::{self, Certificate, Check, ExtractError, Form, Inspection, Outcome, SignatureFile};
use bundle_core::manifest::Manifest;
use bundle_core::output::OutputFile;
use bundle_core::signature::{self, CertError, Fingerprint};
use bundle_core::{release, show, signing};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::exit::Usage;

/// Show what is in a release, who claims to have signed it, when, and until when.
///
/// RELEASE is an archive, signed or not, or the directory of an unpacked release. This is not a verification: it shows
/// what the release says about itself, and whoever made it could make it say anything. Use `spacelift-bundle verify`
/// before you rely on any of it. Exit code 0 only means that the release could be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle inspect self-hosted-v1.2.3.tar.gz
  spacelift-bundle inspect self-hosted-v1.2.3.tar.gz --print commit
  spacelift-bundle inspect self-hosted-v1.2.3 \\
    --extract cloudformation/workerpool.yaml --output workerpool.yaml")]
pub(crate) struct Arguments {
    /// The archive, or the directory of an unpacked release.
    release: PathBuf,
    /// A certificate to check the signatures against, besides those in the release; several are allowed.
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
    /// Print this one value and nothing else.
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["keys_to", "extract"])]
    print: Option<Field>,
    /// Write the certificates of keys/ to this directory, as FINGERPRINT.asc, overwriting nothing.
    #[arg(long, value_name = "DIR", conflicts_with = "extract")]
    keys_to: Option<PathBuf>,
    /// Take the file at this path out of the release. It is compared with the manifest.
    #[arg(long, value_name = "PATH", requires = "output")]
    extract: Option<String>,
    /// Where to write the extracted file.
    #[arg(long, short, value_name = "FILE", requires = "extract")]
    output: Option<PathBuf>,
}

/// What a script may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Field {
    /// The commit that it was built from, or `unknown`
    Commit,
    /// The version, such as v1.2.3
    Version,
    /// The name of its directory, PRODUCT-VERSION
    Root,
    /// The product
    Product,
    /// The channel
    Channel,
    /// The sequence in the channel
    Sequence,
    /// The time of the commit, in seconds since 1970
    SourceDate,
    /// Where the sources are
    Source,
    /// The architectures, separated by spaces
    Targets,
    /// Whether it is a development release: true or false
    Development,
    /// Whether the work tree differed from the commit: true or false
    Modified,
    /// SHA-256 of the archive without the manifest's signature
    Payload,
    /// Who claims to have signed it: fingerprints, separated by spaces
    Signers,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let given = read_given(&arguments.cert)?;
    if let Some(field) = arguments.print {
        let contents = Contents::open(&arguments.release)?;
        let value = value(&contents, field, &given)?;
        return Ok(print_value(&mut io::stdout().lock(), field, value, json)?);
    }
    if let Some(directory) = &arguments.keys_to {
        return write_keys(&Contents::open(&arguments.release)?, directory, json);
    }
    if let (Some(path), Some(output)) = (&arguments.extract, &arguments.output) {
        return extract(&Contents::open(&arguments.release)?, path, output, json);
    }
    let mut inspection = inspect::inspect(&arguments.release, &given, SystemTime::now())?;
    let damage = inspection.damage.take();
    let mut out = io::stdout().lock();
    match (damage, json) {
        // Half a document would be taken for a whole one.
        (Some(damage), true) => return Err(damage.into()),
        (None, true) => writeln!(out, "{}", show::json(&inspection)?)?,
        (damage, false) => {
            let (yellow, reset) = if out.is_terminal() { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
            let warning = format!("{yellow}NOT VERIFIED{reset}: ");
            print(&mut out, &inspection, &warning)?;
            if let Some(damage) = damage {
                writeln!(out, "\nThe archive is damaged; what is shown above may be incomplete.")?;
                return Err(damage.into());
            }
        }
    }
    Ok(())
}

fn read_given(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Cert)>, CertError> {
    let mut given = Vec::new();
    for path in paths {
        given.extend(signature::read_certs(path)?.into_iter().map(|cert| (path.clone(), cert)));
    }
    Ok(given)
}

fn value(contents: &Contents, field: Field, given: &[(PathBuf, Cert)]) -> anyhow::Result<Value> {
    let manifest = contents.manifest();
    Ok(match field {
        Field::Commit => manifest.commit.clone().into(),
        Field::Version => manifest.version.to_string().into(),
        Field::Root => manifest.root().into(),
        Field::Product => manifest.product.clone().into(),
        Field::Channel => manifest.channel.clone().into(),
        Field::Sequence => manifest.sequence.into(),
        Field::SourceDate => manifest.source_date.into(),
        Field::Source => manifest.source.clone().into(),
        Field::Targets => manifest.targets.clone().into(),
        Field::Development => manifest.development.into(),
        Field::Modified => manifest.modified.into(),
        Field::Payload => match contents.head() {
            Some(head) => release::payload(contents.path(), head)?.to_string().into(),
            None => {
                let path = contents.path().display();
                return Err(Usage(format!("{path} is a directory: only an archive has a payload digest")).into());
            }
        },
        Field::Signers => inspect::claimed_signers(contents, given)?.into(),
    })
}

fn print_value(out: &mut impl Write, field: Field, value: Value, json: bool) -> io::Result<()> {
    if json {
        let name = field.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let document = json!({ "verified": false, "field": name, "value": value });
        return writeln!(out, "{}", show::json(&document)?);
    }
    let plain = |value: &Value| match value {
        Value::String(text) => show::text(text),
        other => other.to_string(),
    };
    let line = match &value {
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        value => plain(value),
    };
    writeln!(out, "{line}")
}

fn write_keys(contents: &Contents, directory: &Path, json: bool) -> anyhow::Result<()> {
    let certs = inspect::keys(contents)?;
    if certs.is_empty() {
        let source = io::Error::new(io::ErrorKind::NotFound, "the release holds no certificates");
        return Err(release::Error::Io { doing: "read", path: contents.path().join("keys"), source }.into());
    }
    let files: Vec<_> = certs.iter().map(|cert| directory.join(format!("{}.asc", Fingerprint::of(cert)))).collect();
    if let Some(existing) = files.iter().find(|path| fs::symlink_metadata(path).is_ok()) {
        let existing = existing.display();
        return Err(Usage(format!("{existing} exists and is not overwritten: choose another --keys-to")).into());
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create the directory {}", directory.display()))?;
    for (path, cert) in files.iter().zip(&certs) {
        let armored = signing::armored_certificate(cert)?;
        OutputFile::write(path, &armored).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    if json {
        let written: Vec<_> = files
            .iter()
            .zip(&certs)
            .map(|(path, cert)| json!({ "fingerprint": Fingerprint::of(cert).as_str(), "path": path }))
            .collect();
        return Ok(writeln!(out, "{}", show::json(&json!({ "verified": false, "written": written }))?)?);
    }
    for path in &files {
        writeln!(out, "wrote {}", path.display())?;
    }
    writeln!(
        out,
        "NOT VERIFIED: they came with the release. Compare the fingerprints with those that the vendor gave you by \
         another way before you trust them."
    )?;
    Ok(())
}

fn extract(contents: &Contents, path: &str, output: &Path, json: bool) -> anyhow::Result<()> {
    let cannot_write = || format!("cannot write {}", output.display());
    let mut file = OutputFile::create(output).with_context(cannot_write)?;
    inspect::extract(contents, path, &mut file.writer()).map_err(|error| match error {
        ExtractError::Release(error) => error.into(),
        ExtractError::Write(error) => anyhow::Error::new(error).context(cannot_write()),
    })?;
    file.commit().with_context(cannot_write)?;
    let listed = contents.manifest().file(path);
    if let Some(listed) = listed {
        let permissions = fs::Permissions::from_mode(listed.mode.bits());
        fs::set_permissions(output, permissions).with_context(cannot_write)?;
    }
    let mut out = io::stdout().lock();
    if json {
        let document = json!({
            "verified": false,
            "path": path,
            "output": output.display().to_string(),
            "size": fs::metadata(output).with_context(|| format!("cannot read {}", output.display()))?.len(),
            "sha256": listed.map(|listed| listed.sha256),
        });
        return Ok(writeln!(out, "{}", show::json(&document)?)?);
    }
    writeln!(out, "wrote {}", output.display())?;
    writeln!(
        out,
        "NOT VERIFIED: it is the file that the release's own manifest lists; see `spacelift-bundle verify`."
    )?;
    Ok(())
}

/// `warning` begins the first and the last line.
fn print(out: &mut impl Write, inspection: &Inspection, warning: &str) -> io::Result<()> {
    let release = show::text(&inspection.release);
    writeln!(out, "{warning}this is what the release says about itself; anyone could have written it.")?;
    print_header(out, inspection)?;
    print_contents(out, inspection)?;
    print_signatures(out, inspection)?;
    if !inspection.problems.is_empty() {
        writeln!(out, "\nproblems")?;
        for problem in &inspection.problems {
            writeln!(out, "  {}: {}", show::text(&problem.path), show::text(&problem.problem))?;
        }
    }
    if inspection.form == Form::UnsignedArchive {
        return writeln!(out, "\n{warning}it is not signed; `spacelift-bundle sign` makes a release of it.");
    }
    writeln!(out, "\n{warning}use `spacelift-bundle verify {release} --cert FILE` with the vendor's certificate.")
}

fn print_header(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    let manifest: &Manifest = &inspection.manifest;
    let form = match inspection.form {
        Form::SignedArchive => "archive",
        Form::UnsignedArchive => "archive, not signed",
        Form::Directory => "directory",
    };
    let size = inspection.archive.as_ref().map(|archive| format!(", {}", show::size(archive.size))).unwrap_or_default();
    writeln!(out, "\n{form}{size}: {}", show::text(&inspection.release))?;
    if let Some(archive) = &inspection.archive {
        writeln!(out, "  sha256      {}", archive.sha256)?;
        writeln!(out, "  payload     {}", archive.payload_sha256)?;
    }
    writeln!(out, "\nrelease")?;
    writeln!(out, "  product     {}", show::text(&manifest.product))?;
    writeln!(out, "  version     {}", manifest.version)?;
    writeln!(out, "  sequence    {} in channel {}", manifest.sequence, show::text(&manifest.channel))?;
    let modified = if manifest.modified { ", with uncommitted changes" } else { "" };
    writeln!(out, "  commit      {}{modified}", show::text(&manifest.commit))?;
    writeln!(out, "  source      {}", show::text(&manifest.source))?;
    writeln!(out, "  date        {}", inspection.date)?;
    let targets = if manifest.targets.is_empty() { "none".to_owned() } else { manifest.targets.join(", ") };
    writeln!(out, "  targets     {}", show::text(&targets))?;
    match &manifest.minimum_upgrade_from {
        Some(version) => writeln!(out, "  upgrade     from {version} or later")?,
        None => writeln!(out, "  upgrade     from any version")?,
    }
    writeln!(out, "  signers     {} intended by the vendor", manifest.threshold)?;
    if manifest.development {
        writeln!(out, "  DEVELOPMENT RELEASE: no release key signed it")?;
    }
    Ok(())
}

fn print_contents(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    let manifest = &inspection.manifest;
    let total: u64 = manifest.files.iter().map(|file| file.size).sum();
    writeln!(out, "\nfiles         {}, {}", manifest.files.len(), show::size(total))?;
    for file in &manifest.files {
        let kind = format!("{:?}", file.kind).to_lowercase();
        writeln!(out, "  {:04o}  {kind:<10}  {:>10}  {}", file.mode.bits(), show::size(file.size), file.path)?;
    }
    if !manifest.images.is_empty() {
        writeln!(out, "\nimages")?;
        for image in &manifest.images {
            writeln!(out, "  {} for {}", show::text(&image.name), show::text(&image.platforms.join(", ")))?;
            writeln!(out, "    {}", show::text(&image.digest))?;
        }
    }
    if !inspection.binaries.is_empty() {
        writeln!(out, "\nprograms")?;
    }
    for binary in &inspection.binaries {
        match &binary.build {
            Some(build) => {
                let linkage = if binary.is_static == Some(true) { "static" } else { "NOT STATIC" };
                writeln!(out, "  {}: {} {}, {}, {linkage}", binary.path, build.program, build.version, build.target)?;
                if build.commit != manifest.commit {
                    writeln!(out, "    built from another commit: {}", build.commit)?;
                }
            }
            None => writeln!(out, "  {}", binary.path)?,
        }
        if let Some(worker) = &binary.worker {
            writeln!(out, "    worker {}, {}, {}", worker.version, worker.target, show::size(worker.size))?;
            writeln!(out, "    sha256 {}", worker.sha256)?;
        }
        if let Some(problem) = &binary.problem {
            writeln!(out, "    problem: {}", show::text(problem))?;
        }
    }
    Ok(())
}

fn print_signatures(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    writeln!(out, "\nsignatures, as they describe themselves")?;
    if let Some(sums) = &inspection.sums {
        let file = show::text(&sums.file);
        match (&sums.problem, sums.found) {
            (Some(problem), _) => writeln!(out, "  {file}: {}", show::text(problem))?,
            (None, true) => writeln!(out, "  {file}: names this archive and its SHA-256")?,
            (None, false) => writeln!(out, "  {file}: missing")?,
        }
    }
    for file in &inspection.signatures {
        print_signature_file(out, file)?;
    }
    if inspection.certificates.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ncertificates; what is in keys/ came with the release and proves nothing")?;
    for certificate in &inspection.certificates {
        print_certificate(out, certificate)?;
    }
    Ok(())
}

fn print_signature_file(out: &mut impl Write, file: &SignatureFile) -> io::Result<()> {
    let name = show::text(&file.file);
    match (&file.problem, file.found) {
        (Some(problem), _) => return writeln!(out, "  {name}: {}", show::text(problem)),
        (None, false) => return writeln!(out, "  {name}: missing, so {} is not signed", show::text(&file.signs)),
        (None, true) => writeln!(out, "  {name}")?,
    }
    for signature in &file.signatures {
        let made_at = signature.made_at.as_deref().unwrap_or("an unknown time");
        let issuer = signature.issuer.as_deref().unwrap_or("nobody that is named");
        writeln!(out, "    made {made_at} by {}, {}", show::text(issuer), show::text(&signature.hash))?;
        if signature.checks.is_empty() {
            writeln!(out, "      no certificate at hand has this key; give it with --cert FILE")?;
        }
        for Check { certificate, origin, user_id, expires, result, problem } in &signature.checks {
            let user_id = user_id.as_deref().map(show::text).unwrap_or_default();
            let verdict = match result {
                Outcome::Matches => "matches",
                Outcome::Fails => "FAILS against",
                Outcome::NotChecked => "cannot be checked without the signed file against",
            };
            writeln!(out, "      {verdict} {certificate} in {}", show::text(origin))?;
            writeln!(out, "        {user_id}, {}", until(expires.as_deref()))?;
            if let Some(problem) = problem {
                writeln!(out, "        {}", show::text(problem))?;
            }
        }
    }
    Ok(())
}

fn until(expires: Option<&str>) -> String {
    expires.map_or_else(|| "no expiry known".to_owned(), |time| format!("valid until {time}"))
}

fn print_certificate(out: &mut impl Write, certificate: &Certificate) -> io::Result<()> {
    let revoked = if certificate.revoked { " REVOKED" } else { "" };
    writeln!(out, "  {}{revoked} from {}", certificate.fingerprint, show::text(&certificate.origin))?;
    for user_id in &certificate.user_ids {
        writeln!(out, "    {}", show::text(user_id))?;
    }
    for key in &certificate.signing_keys {
        let state = match (key.revoked, key.expired) {
            (true, _) => ", REVOKED",
            (false, true) => ", EXPIRED",
            (false, false) => "",
        };
        let until = until(key.expires.as_deref());
        writeln!(out, "    signing key {} made {}, {until}{state}", key.fingerprint, key.created)?;
    }
    if let Some(problem) = &certificate.problem {
        writeln!(out, "    problem: {}", show::text(problem))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bundle_core::pack;
    use bundle_core::signing::{NewKey, Signer};
    use clap::Parser;

    use super::*;

    /// What a terminal would obey, or show in another order.
    const HOSTILE: &str = "x\u{1b}[2J\u{9b}31m\u{7}\u{202e}\ny";

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        let all = ["inspect", "x"].iter().chain(arguments);
        Command::try_parse_from(all).map(|command| command.arguments)
    }

    fn key(user_id: &str) -> NewKey {
        signing::generate(user_id, Duration::from_secs(86_400 * 365), None, SystemTime::now()).unwrap()
    }

    /// A signed release with two files and the signer's certificate.
    fn signed(directory: &Path, source: &str, key: &NewKey) -> PathBuf {
        let stage = directory.join("stage");
        fs::create_dir_all(stage.join("bin")).unwrap();
        fs::write(stage.join("bin/tool"), "not a program").unwrap();
        fs::write(stage.join("config.json"), "{}\n").unwrap();
        let release = pack::Release {
            product: "self-hosted".into(),
            version: "v1.2.3".parse().unwrap(),
            sequence: 7,
            channel: "stable".into(),
            development: true,
            commit: "unknown".into(),
            modified: false,
            source_date: 1_700_000_000,
            source: source.into(),
            minimum_upgrade_from: None,
            threshold: 1,
            certificates: signature::certs_from_bytes(&key.certificate).unwrap(),
            stage,
            files: Vec::new(),
            images: Vec::new(),
        };
        let unsigned = pack::pack(&release, directory, 1).unwrap().path;
        let secret = directory.join("secret");
        fs::write(&secret, &key.secret).unwrap();
        let signer = Signer::from_file(&secret, None, SystemTime::now()).unwrap();
        release::sign(&unsigned, directory, &[signer], SystemTime::now()).unwrap().files.archive
    }

    fn shown(inspection: &Inspection) -> String {
        let mut out = Vec::new();
        print(&mut out, inspection, "NOT VERIFIED: ").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_unknown_field_is_a_usage_error_that_lists_the_fields() {
        let error = parse(&["--print", "colour"]).err().unwrap();
        assert!(error.use_stderr());
        let message = error.to_string();
        let fields = [
            "commit",
            "version",
            "root",
            "product",
            "channel",
            "sequence",
            "source-date",
            "source",
            "targets",
            "development",
            "modified",
            "payload",
            "signers",
        ];
        for field in fields {
            assert!(message.contains(field), "{message}");
            assert!(parse(&["--print", field]).unwrap().print.is_some(), "{field}");
        }
    }

    #[test]
    fn one_thing_is_done_at_a_time() {
        for wrong in [
            &["--print", "commit", "--keys-to", "d"][..],
            &["--print", "commit", "--extract", "a", "--output", "b"],
            &["--keys-to", "d", "--extract", "a", "--output", "b"],
            &["--extract", "a"],
            &["--output", "b"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_in_a_release_reaches_the_terminal_unescaped() {
        let directory = tempfile::tempdir().unwrap();
        let archive = signed(directory.path(), HOSTILE, &key(HOSTILE));
        let mut sums = archive.clone().into_os_string();
        sums.push("_SHA256SUMS");
        fs::write(sums, HOSTILE).unwrap();
        let inspection = inspect::inspect(&archive, &[], SystemTime::now()).unwrap();
        let text = shown(&inspection);
        assert!(text.contains("x\\u{1b}[2J"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        let json = show::json(&inspection).unwrap();
        assert!(json.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{json}");
        let mut line = Vec::new();
        let contents = Contents::open(&archive).unwrap();
        print_value(&mut line, Field::Source, value(&contents, Field::Source, &[]).unwrap(), false).unwrap();
        assert!(line.strip_suffix(b"\n").unwrap().iter().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
    }

    #[test]
    fn nobody_can_take_it_for_a_verification() {
        let directory = tempfile::tempdir().unwrap();
        let archive = signed(directory.path(), "https://example.com", &key("Vendor"));
        let text = shown(&inspect::inspect(&archive, &[], SystemTime::now()).unwrap());
        assert!(text.starts_with("NOT VERIFIED: "), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("NOT VERIFIED: ") && last.contains("spacelift-bundle verify"), "{last}");
        for word in ["good", "valid signature", "trusted", "ok"] {
            assert!(!text.to_lowercase().split_whitespace().any(|found| found == word), "{word}: {text}");
        }
        for expected in ["DEVELOPMENT RELEASE", "matches", "proves nothing", "0755  binary", "config.json", "problem: "]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn each_field_is_one_plain_line() {
        let directory = tempfile::tempdir().unwrap();
        let vendor = key("Vendor");
        let contents = Contents::open(&signed(directory.path(), "https://example.com", &vendor)).unwrap();
        let payload = release::payload(contents.path(), contents.head().unwrap()).unwrap().to_string();
        let expected = [
            (Field::Commit, "unknown"),
            (Field::Version, "v1.2.3"),
            (Field::Root, "self-hosted-v1.2.3"),
            (Field::Product, "self-hosted"),
            (Field::Channel, "stable"),
            (Field::Sequence, "7"),
            (Field::SourceDate, "1700000000"),
            (Field::Source, "https://example.com"),
            (Field::Targets, ""),
            (Field::Development, "true"),
            (Field::Modified, "false"),
            (Field::Payload, &payload),
            (Field::Signers, vendor.fingerprint.as_str()),
        ];
        assert_eq!(expected.len(), Field::value_variants().len());
        for (field, expected) in expected {
            let mut out = Vec::new();
            print_value(&mut out, field, value(&contents, field, &[]).unwrap(), false).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"), "{field:?}");
        }
        let mut out = Vec::new();
        let two: Value = vec!["aarch64", "x86_64"].into();
        print_value(&mut out, Field::Targets, two.clone(), false).unwrap();
        print_value(&mut out, Field::Targets, two, true).unwrap();
        let json = r#"{"field":"targets","value":["aarch64","x86_64"],"verified":false}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("aarch64 x86_64\n{json}\n"));
    }

    #[test]
    fn certificates_are_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let vendor = key("Vendor");
        let contents = Contents::open(&signed(directory.path(), "https://example.com", &vendor)).unwrap();
        let keys = directory.path().join("a/keys");
        write_keys(&contents, &keys, false).unwrap();
        let file = keys.join(format!("{}.asc", vendor.fingerprint));
        assert_eq!(signature::read_certs(&file).unwrap().len(), 1);
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 1);
        fs::write(&file, "mine").unwrap();
        let error = write_keys(&contents, &keys, false).unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"mine");
    }

    #[test]
    fn an_extracted_file_has_its_mode_and_a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let archive = signed(directory.path(), "https://example.com", &key("Vendor"));
        let contents = Contents::open(&archive).unwrap();
        let output = directory.path().join("out/tool");
        fs::create_dir(output.parent().unwrap()).unwrap();
        assert!(extract(&contents, "bin/none", &output, false).is_err());
        assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 0);
        extract(&contents, "bin/tool", &output, false).unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"not a program");
        assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o755);
        extract(&contents, "config.json", &output, true).unwrap();
        assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
