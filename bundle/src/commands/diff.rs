//! `diff`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use bundle_core::contents::Contents;
use bundle_core::diff::{
    self, Changed, Changes, Dependencies, Dependency, Difference, Field, Problems, Reproduction, TemplateChanges,
};
use bundle_core::inspect::{Binary, Certificate, Problem};
use bundle_core::manifest::Image;
use bundle_core::show;
use bundle_core::source::Date;
use serde_json::Value;

/// Lines of one group that a person reads; `--json` has all.
const SHOWN: usize = 40;
/// Items of one line that a person reads.
const SHOWN_IN_LINE: usize = 10;

/// Show what changed between two releases.
///
/// Files, versions, images, programs, template parameters and resources, dependencies from the SBOMs, certificates. OLD
/// and NEW are archives, signed or not, or directories of unpacked releases. Neither is verified: use
/// `spacelift-bundle verify` for that. Exit code 0 whether or not something changed.
///
/// With --reproduce: whether two builds are the same but for their signatures. Exit code 1 if anything differs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle diff self-hosted-v1.2.3.tar.gz self-hosted-v1.3.0.tar.gz
  spacelift-bundle diff --reproduce self-hosted-v1.2.3.tar.gz \\
    rebuilt/self-hosted-v1.2.3.unsigned.tar.gz")]
pub(crate) struct Arguments {
    /// The release that was there first.
    old: PathBuf,
    /// The release to compare it with.
    new: PathBuf,
    /// Compare everything but the signatures byte by byte, and fail if anything differs.
    #[arg(long)]
    reproduce: bool,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let (old, new) = (Contents::open(&arguments.old)?, Contents::open(&arguments.new)?);
    if arguments.reproduce {
        let reproduction = diff::reproduce(&old, &new)?;
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", show::json(&reproduction)?)?;
        } else {
            print_reproduction(&mut out, &reproduction)?;
        }
        return Ok(if reproduction.identical { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let difference = diff::compare(&old, &new, SystemTime::now())?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", show::json(&difference)?)?;
    } else {
        print(&mut out, &difference)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, difference: &Difference) -> io::Result<()> {
    let Difference { old, new, fields, .. } = difference;
    writeln!(out, "{} -> {}", show::text(&old.root), show::text(&new.root))?;
    for note in &difference.notes {
        writeln!(out, "note: {}", show::text(note))?;
    }
    group(out, "release", fields.iter().map(field))?;
    print_files(out, difference)?;
    group(out, "images", lines_of(&difference.images, image, image_change))?;
    let one = |it: &Binary| format!("{}  {}", it.path, binary(it));
    let both = |old: &Binary, new: &Binary| format!("{}  {} -> {}", new.path, binary(old), binary(new));
    group(out, "programs", lines_of(&difference.binaries, one, both))?;
    for template in &difference.templates {
        group(out, &show::text(&template.path), template_lines(template))?;
    }
    print_dependencies(out, &difference.dependencies)?;
    group(out, "certificates in keys/", lines_of(&difference.keys, certificate, certificate_change))?;
    print_problems(out, &difference.problems)?;
    writeln!(out, "\nNOT VERIFIED: neither release was. See `spacelift-bundle verify`.")
}

/// A heading and its lines, if there are any.
fn group(out: &mut impl Write, heading: &str, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    let mut count = 0;
    for line in lines {
        if count == 0 {
            writeln!(out, "\n{heading}")?;
        }
        if count < SHOWN {
            writeln!(out, "  {line}")?;
        }
        count += 1;
    }
    if count > SHOWN {
        writeln!(out, "  … and {} more; --json has all", count - SHOWN)?;
    }
    Ok(())
}

/// A line for each change: `+` added, `-` removed, `~` changed.
fn lines_of<T>(changes: &Changes<T>, one: impl Fn(&T) -> String, both: impl Fn(&T, &T) -> String) -> Vec<String> {
    let added = changes.added.iter().map(|item| format!("+ {}", one(item)));
    let removed = changes.removed.iter().map(|item| format!("- {}", one(item)));
    let changed = changes.changed.iter().map(|change| format!("~ {}", both(&change.old, &change.new)));
    added.chain(removed).chain(changed).collect()
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => show::text(text),
        other => show::text(&other.to_string()),
    }
}

fn field(field: &Field) -> String {
    let value = |value: &Value| match value.to_string().parse::<Date>() {
        Ok(date) if field.field == "source_date" => date.to_string(),
        _ => self::value(value),
    };
    format!("{}: {} -> {}", show::text(&field.field).replace('_', " "), value(&field.old), value(&field.new))
}

fn image(image: &Image) -> String {
    format!("{}\n      {}", show::text(&image.name), image_state(image))
}

fn image_change(old: &Image, new: &Image) -> String {
    format!("{}\n      from {}\n      to   {}", show::text(&new.name), image_state(old), image_state(new))
}

fn image_state(image: &Image) -> String {
    format!("{} for {}", show::text(&image.digest), show::text(&image.platforms.join(", ")))
}

fn certificate(certificate: &Certificate) -> String {
    let user_id = certificate.user_ids.first().map(|id| show::text(id)).unwrap_or_default();
    format!("{} {user_id}", certificate.fingerprint)
}

fn certificate_change(_: &Certificate, new: &Certificate) -> String {
    let mut lines = format!("{}{}, now with", new.fingerprint, if new.revoked { " REVOKED" } else { "" });
    for key in &new.signing_keys {
        let state = match &key.expires {
            _ if key.revoked => "revoked".to_owned(),
            Some(time) => format!("until {time}"),
            None => "does not expire".to_owned(),
        };
        lines += &format!("\n      signing key {}, {state}", key.fingerprint);
    }
    lines
}

fn binary(binary: &Binary) -> String {
    let build = match (&binary.build, &binary.problem) {
        (Some(build), _) => build.version.clone(),
        (None, Some(problem)) => format!("unknown ({})", show::text(problem)),
        (None, None) => "unknown".to_owned(),
    };
    let worker = binary.worker.as_ref().map(|worker| {
        let digest: String = worker.sha256.to_string().chars().take(12).collect();
        format!(" with worker {} ({digest})", worker.version)
    });
    build + &worker.unwrap_or_default()
}

fn print_files(out: &mut impl Write, difference: &Difference) -> io::Result<()> {
    let files = &difference.files;
    let heading = format!(
        "files: {} added, {} removed, {} changed, {} unchanged",
        files.added.len(),
        files.removed.len(),
        files.changed.len(),
        difference.unchanged_files
    );
    if files.is_empty() {
        return writeln!(out, "\n{heading}");
    }
    group(
        out,
        &heading,
        lines_of(
            files,
            |file| format!("{}  {}", file.path, show::size(file.size)),
            |old, new| {
                let grown = i128::from(new.size) - i128::from(old.size);
                let size = match grown {
                    0 => format!("{}, same size", show::size(new.size)),
                    _ => format!("{} -> {} ({grown:+} bytes)", show::size(old.size), show::size(new.size)),
                };
                format!("{}  {size}", new.path)
            },
        ),
    )
}

fn template_lines(template: &TemplateChanges) -> Vec<String> {
    let mut lines = Vec::new();
    for parameter in &template.parameters.added {
        let (name, kind) = (show::text(&parameter.name), show::text(&parameter.kind));
        let default = match &parameter.default {
            Some(default) => format!("default {}", quoted(default)),
            None => "no default: it must be given".to_owned(),
        };
        lines.push(format!("+ parameter {name} ({kind}), {default}"));
    }
    for parameter in &template.parameters.removed {
        lines.push(format!("- parameter {} ({})", show::text(&parameter.name), show::text(&parameter.kind)));
    }
    for Changed { name, changes, .. } in &template.parameters.changed {
        let absent = || "none".to_owned();
        let changes = changes.iter().map(|change| {
            let old = change.old.as_ref().map_or_else(absent, quoted);
            let new = change.new.as_ref().map_or_else(absent, quoted);
            format!("{} {old} -> {new}", show::text(&change.path))
        });
        lines.push(format!("~ parameter {}: {}", show::text(name), in_line(changes)));
    }
    for (sign, resources) in [('+', &template.resources.added), ('-', &template.resources.removed)] {
        for resource in resources {
            lines.push(format!("{sign} resource {} ({})", show::text(&resource.name), show::text(&resource.kind)));
        }
    }
    for Changed { name, kind, changes } in &template.resources.changed {
        let paths = in_line(changes.iter().map(|change| show::text(&change.path)));
        lines.push(format!("~ resource {} ({}): {paths}", show::text(name), show::text(kind)));
    }
    if !template.sections.is_empty() {
        lines.push(format!("~ {}", in_line(template.sections.iter().map(|section| show::text(section)))));
    }
    lines
}

/// The items with commas between them, or the first few.
fn in_line(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(SHOWN_IN_LINE);
    let shown = items.take(SHOWN_IN_LINE).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// As in the template, so that `10` and `"10"` and nothing at all look different.
fn quoted(value: &Value) -> String {
    show::text(&value.to_string())
}

fn print_dependencies(out: &mut impl Write, dependencies: &Dependencies) -> io::Result<()> {
    if dependencies.is_empty() {
        return Ok(());
    }
    let Dependencies { added, removed, changed, added_sboms, removed_sboms, .. } = dependencies;
    let heading = format!("dependencies: {} added, {} removed, {} changed", added.len(), removed.len(), changed.len());
    let line = |sign: char, dependency: &Dependency| {
        let versions = |versions: &[String]| show::text(&versions.join(" and "));
        let (old, new) = (versions(&dependency.old), versions(&dependency.new));
        let arrow = if old.is_empty() || new.is_empty() { "" } else { " -> " };
        let programs = match dependency.sboms.as_slice() {
            few @ ([_] | [_, _]) => few.iter().map(|path| sbom_name(path)).collect::<Vec<_>>().join(", "),
            many => format!("{} programs", many.len()),
        };
        format!("{sign} {} {old}{arrow}{new}  ({programs})", show::text(&dependency.name))
    };
    let sbom =
        |sign: char, path: &str, components| format!("{sign} all of {}: {components} components", sbom_name(path));
    let lines = (added.iter().map(|it| line('+', it)))
        .chain(removed.iter().map(|it| line('-', it)))
        .chain(changed.iter().map(|it| line('~', it)))
        .chain(added_sboms.iter().map(|it| sbom('+', &it.path, it.components)))
        .chain(removed_sboms.iter().map(|it| sbom('-', &it.path, it.components)));
    group(out, &heading, lines)
}

/// The program that an SBOM is of.
fn sbom_name(path: &str) -> &str {
    path.trim_start_matches("sbom/").trim_end_matches(".json").trim_end_matches(".cdx")
}

fn print_problems(out: &mut impl Write, problems: &Problems) -> io::Result<()> {
    let line = |side: &'static str| {
        move |problem: &Problem| format!("{side}: {}: {}", show::text(&problem.path), show::text(&problem.problem))
    };
    let lines = problems.old.iter().map(line("old")).chain(problems.new.iter().map(line("new")));
    group(out, "problems", lines)
}

fn print_reproduction(out: &mut impl Write, result: &Reproduction) -> io::Result<()> {
    let Reproduction { old, new, payload, .. } = result;
    if result.identical {
        let payload = payload.old.filter(|_| payload.new.is_some());
        let payload = payload.map(|digest| format!(", payload sha256 {digest}")).unwrap_or_default();
        return writeln!(
            out,
            "identical but for signatures: {}, {} files{payload}",
            show::text(&new.root),
            result.compared
        );
    }
    writeln!(out, "DIFFERENT: {} is not {}", show::text(&new.release), show::text(&old.release))?;
    if let (Some(old), Some(new)) = (payload.old, payload.new) {
        writeln!(out, "  payload old {old}\n  payload new {new}")?;
    }
    group(out, "manifest", result.fields.iter().map(field))?;
    let one_sided = |sign: &'static str, side: &'static str| {
        move |file: &diff::OneSided| format!("{sign} {}  {}, only in the {side} one", file.path, show::size(file.size))
    };
    group(
        out,
        "files on one side",
        result
            .only_in_old
            .iter()
            .map(one_sided("-", "old"))
            .chain(result.only_in_new.iter().map(one_sided("+", "new"))),
    )?;
    group(
        out,
        "files that differ",
        result.files.iter().map(|file| {
            let first = &file.first;
            format!(
                "{}  {} and {} bytes, first difference at byte {}\n      old at {}: {}\n      new at {}: {}",
                file.path,
                file.old_size,
                file.new_size,
                first.offset,
                first.context_offset,
                spaced(&first.old),
                first.context_offset,
                spaced(&first.new),
            )
        }),
    )?;
    print_problems(out, &result.problems)?;
    let same_files = result.files.is_empty() && result.only_in_old.is_empty() && result.only_in_new.is_empty();
    if same_files && result.problems.is_empty() {
        writeln!(
            out,
            "\nEvery file is the same: only the compression of the archives differs, as between two versions of spacelift-bundle."
        )?;
    }
    Ok(())
}

/// Pairs of digits.
fn spaced(hexadecimal: &str) -> String {
    let mut spaced = String::with_capacity(hexadecimal.len() * 3 / 2);
    for (index, digit) in hexadecimal.chars().enumerate() {
        if index > 0 && index % 2 == 0 {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use bundle_core::pack;

    use super::*;

    /// What a terminal would obey, or show in another order.
    const HOSTILE: &str = "x\u{1b}[2J\u{9b}31m\u{7}\u{202e}y";

    fn packed(directory: &Path, version: &str, source: &str, files: &[(&str, &str)]) -> Contents {
        let stage = directory.join(version);
        fs::create_dir(&stage).unwrap();
        for (path, contents) in files {
            let path = stage.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        let release = pack::Release {
            product: "self-hosted".into(),
            version: version.parse().unwrap(),
            sequence: 7,
            channel: "stable".into(),
            development: false,
            commit: "unknown".into(),
            modified: false,
            source_date: 1_700_000_000,
            source: source.into(),
            minimum_upgrade_from: None,
            threshold: 1,
            certificates: Vec::new(),
            stage,
            files: Vec::new(),
            images: Vec::new(),
        };
        Contents::open(&pack::pack(&release, directory, 1).unwrap().path).unwrap()
    }

    fn sbom(components: &[(&str, &str)]) -> String {
        let components: Vec<_> =
            components.iter().map(|(name, version)| serde_json::json!({ "name": name, "version": version })).collect();
        serde_json::json!({ "bomFormat": "CycloneDX", "components": components }).to_string()
    }

    fn shown(old: &Contents, new: &Contents) -> String {
        let mut out = Vec::new();
        print(&mut out, &diff::compare(old, new, SystemTime::now()).unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn changes_are_grouped_and_short() {
        let directory = tempfile::tempdir().unwrap();
        let old = [
            ("cloudformation/x.yaml", "Parameters: {Max: {Type: Number, Default: 10}, Old: {Type: String}}"),
            ("sbom/launcher.cdx.json", &sbom(&[("tokio", "1.0.0"), ("gone", "1.0.0")])),
            ("a", "1"),
        ];
        let new = [
            (
                "cloudformation/x.yaml",
                "Parameters: {Max: {Type: Number, Default: 20}, New: {Type: String}}\nResources: {T: {Type: 'AWS::SNS::Topic'}}",
            ),
            ("sbom/launcher.cdx.json", &sbom(&[("tokio", "1.1.0"), ("new", "2.0.0")])),
            ("a", "123"),
        ];
        let old = packed(directory.path(), "v1.2.3", "https://example.com", &old);
        let new = packed(directory.path(), "v1.3.0", "https://example.com", &new);
        let text = shown(&old, &new);
        for line in [
            "self-hosted-v1.2.3 -> self-hosted-v1.3.0",
            "  version: v1.2.3 -> v1.3.0",
            "files: 0 added, 0 removed, 4 changed, 0 unchanged",
            "  ~ a  1 B -> 3 B (+2 bytes)",
            "  ~ version  7 B, same size",
            "cloudformation/x.yaml",
            "  + parameter New (String), no default: it must be given",
            "  - parameter Old (String)",
            "  ~ parameter Max: Default 10 -> 20",
            "  + resource T (AWS::SNS::Topic)",
            "dependencies: 1 added, 1 removed, 1 changed",
            "  + new 2.0.0  (launcher)",
            "  - gone 1.0.0  (launcher)",
            "  ~ tokio 1.0.0 -> 1.1.0  (launcher)",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
        assert!(text.lines().any(|line| line.starts_with("note: both have sequence 7")), "{text}");
        assert!(text.lines().last().unwrap().starts_with("NOT VERIFIED"), "{text}");
        let same = shown(&old, &old);
        assert!(same.contains("files: 0 added, 0 removed, 0 changed, 4 unchanged"), "{same}");
        assert_eq!(same.lines().filter(|line| !line.is_empty()).count(), 3, "{same}");
    }

    #[test]
    fn a_long_group_is_cut() {
        let mut out = Vec::new();
        group(&mut out, "heading", (0..SHOWN + 5).map(|number| number.to_string())).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1 + 1 + SHOWN + 1);
        assert!(text.ends_with("  … and 5 more; --json has all\n"), "{text}");
        assert_eq!(in_line((0..11).map(|number| number.to_string())), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more");
        assert_eq!(in_line((0..2).map(|number| number.to_string())), "0, 1");
    }

    #[test]
    fn nothing_in_a_release_reaches_the_terminal_unescaped() {
        let directory = tempfile::tempdir().unwrap();
        let name = serde_json::to_string(HOSTILE).unwrap();
        let template = format!(
            "{{\"Parameters\": {{{name}: {{\"Type\": {name}, \"Default\": {name}}}, \"A\": {{\"Default\": {name}}}}}, \
             \"Resources\": {{{name}: {{\"Type\": {name}}}, \"A\": {{{name}: 1}}}}, {name}: 1}}"
        );
        let files = [
            ("cloudformation/x.json", template.as_str()),
            ("cloudformation/broken.yaml", "\u{1b}: [\u{1b}"),
            ("sbom/x.cdx.json", &sbom(&[(HOSTILE, HOSTILE)])),
            ("bin/x", HOSTILE),
        ];
        let other = [
            ("cloudformation/x.json", r#"{"Parameters": {"A": {}}, "Resources": {"A": {}}}"#),
            ("sbom/x.cdx.json", &sbom(&[])),
        ];
        let hostile = packed(directory.path(), "v1.2.3", HOSTILE, &files);
        let other = packed(directory.path(), "v1.2.4", "https://example.com", &other);
        for (old, new) in [(&hostile, &other), (&other, &hostile)] {
            let text = shown(old, new);
            assert!(text.contains("x\\u{1b}[2J"), "{text}");
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
            let mut out = Vec::new();
            print_reproduction(&mut out, &diff::reproduce(old, new).unwrap()).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        }
    }

    #[test]
    fn a_rebuild_is_judged_in_one_line_or_file_by_file() {
        let directory = tempfile::tempdir().unwrap();
        let old = packed(directory.path(), "v1.2.3", "https://example.com", &[("a", "12345"), ("b", "x")]);
        let shown = |new: &Contents| {
            let mut out = Vec::new();
            print_reproduction(&mut out, &diff::reproduce(&old, new).unwrap()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let same = shown(&old);
        assert!(
            same.starts_with("identical but for signatures: self-hosted-v1.2.3, 3 files, payload sha256 "),
            "{same}"
        );
        assert_eq!(same.lines().count(), 1);
        let new = packed(directory.path(), "v1.2.4", "https://example.com", &[("a", "12x45"), ("c", "x")]);
        let different = shown(&new);
        for line in [
            "  version: v1.2.3 -> v1.2.4",
            "  - b  1 B, only in the old one",
            "  + c  1 B, only in the new one",
            "  a  5 and 5 bytes, first difference at byte 2",
            "      old at 0: 31 32 33 34 35",
            "      new at 0: 31 32 78 34 35",
        ] {
            assert!(different.lines().any(|found| found == line), "{line:?} in\n{different}");
        }
        assert!(different.starts_with("DIFFERENT: "), "{different}");
    }
}
