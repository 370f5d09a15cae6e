//! Steps 4 and 5: what the sums say, and that the archive is what they say. The sums are validly signed throughout.

use bundle_core::digest::Digest;
use bundle_core::sums::line;
use integration_tests::case::Preparation;

use super::{Made, Material};
use crate::release::{Package, Release};

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = wording(material)?;
    cases.extend(archives(material)?);
    Ok(cases)
}

/// Step 4: one line of the exact form, with the exact name.
fn wording(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, good, .. } = material;
    let mut cases = Vec::new();
    let digest = good.digest();
    let name = good.name.as_str();
    let correct = line(digest, name);
    let mut add = |case, description, sums: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = good.clone().with_sums(vendor, sums)?;
        cases.push(Made::archive(material, case, description, &package)?.refused(14, message));
        Ok(())
    };
    let not_named = ["it has no line for \"self-hosted-v1.2.3.tar.gz\""];
    add(
        "sums-for-another-file",
        "The sums are for another file of the vendor's.",
        line(digest, "spacelift-launcher").into_bytes(),
        &[not_named[0], "\"spacelift-launcher\""],
    )?;
    add(
        "sums-for-another-version",
        "The sums are for another version.",
        line(digest, "self-hosted-v1.2.2.tar.gz").into_bytes(),
        &[not_named[0], "\"self-hosted-v1.2.2.tar.gz\""],
    )?;
    add(
        "sums-name-is-longer",
        "The archive's name is the beginning of the name in the sums.",
        line(digest, &format!("{name}.old")).into_bytes(),
        &not_named,
    )?;
    add(
        "sums-name-is-longer-in-front",
        "The archive's name is the end of the name in the sums.",
        line(digest, &format!("old-{name}")).into_bytes(),
        &not_named,
    )?;
    add(
        "sums-name-is-shorter",
        "The name in the sums is the beginning of the archive's name.",
        line(digest, "self-hosted-v1.2.3").into_bytes(),
        &not_named,
    )?;
    add(
        "sums-name-in-other-case",
        "The name in the sums differs in the case of one letter.",
        line(digest, &name.replace("self", "Self")).into_bytes(),
        &not_named,
    )?;
    let other = Digest::of(b"another archive");
    add(
        "sums-two-lines",
        "Two lines for the archive: the right digest and another.",
        (line(digest, name) + &line(other, name)).into_bytes(),
        &["names \"self-hosted-v1.2.3.tar.gz\" more than once"],
    )?;
    add(
        "sums-two-lines-right-one-last",
        "Two lines for the archive: another digest and then the right one.",
        (line(other, name) + &line(digest, name)).into_bytes(),
        &["more than once"],
    )?;
    add("sums-two-equal-lines", "The same line twice.", correct.repeat(2).into_bytes(), &["more than once"])?;
    add(
        "sums-two-lines-for-another-file",
        "The archive is named once, another file twice.",
        (correct.clone() + &line(other, "other") + &line(digest, "other")).into_bytes(),
        &["names \"other\" more than once"],
    )?;

    let malformed = "is not `<64 lower-case hexadecimal digits>  <file name>`";
    let lines: [(&'static str, &'static str, String, &[&str]); 18] = [
        (
            "sums-garbage-line-after",
            "A line of garbage after the right one.",
            correct.clone() + "garbage\n",
            &["line 2", malformed],
        ),
        (
            "sums-garbage-line-before",
            "A line of garbage before the right one.",
            "garbage\n".to_owned() + &correct,
            &["line 1", malformed],
        ),
        (
            "sums-comment",
            "A comment, which sha256sum -c passes over.",
            "# nothing to see\n".to_owned() + &correct,
            &["line 1", malformed],
        ),
        ("sums-blank-line", "An empty line.", "\n".to_owned() + &correct, &["line 1", malformed]),
        ("sums-blank-line-at-end", "An empty line at the end.", correct.clone() + "\n", &["line 2", malformed]),
        ("sums-crlf", "Lines end as on Windows.", correct.replace('\n', "\r\n"), &["CR LF", "binary mode"]),
        ("sums-cr", "Lines end in a carriage return only.", correct.replace('\n', "\r") + "\n", &["CR LF"]),
        ("sums-no-newline", "The last line has no end.", correct.trim_end().to_owned(), &["no newline"]),
        (
            "sums-absolute-path",
            "The archive is named by an absolute path.",
            line(digest, &format!("/tmp/{name}")),
            &[malformed],
        ),
        ("sums-directory", "The archive is named in a directory.", line(digest, &format!("./{name}")), &[malformed]),
        (
            "sums-parent-directory",
            "The archive is named in the directory above.",
            line(digest, &format!("../{name}")),
            &[malformed],
        ),
        (
            "sums-upper-case",
            "The digest has upper-case letters.",
            line(digest, name).replace(&digest.to_string(), &digest.to_string().to_uppercase()),
            &[malformed],
        ),
        ("sums-binary-marker", "The form that sha256sum -b writes.", correct.replace("  ", " *"), &[malformed]),
        ("sums-one-space", "One space.", correct.replace("  ", " "), &[malformed]),
        ("sums-tab", "A tab between digest and name.", correct.replace("  ", "\t"), &[malformed]),
        (
            "sums-bsd-form",
            "The form that sha256sum --tag writes.",
            format!("SHA256 ({name}) = {digest}\n"),
            &[malformed],
        ),
        (
            "sums-escaped",
            "A backslash before the digest, with which sha256sum says that the name is escaped.",
            format!("\\{correct}"),
            &[malformed],
        ),
        ("sums-trailing-space", "A space after the name.", format!("{digest}  {name} \n"), &[malformed]),
    ];
    for (case, description, text, message) in lines {
        add(case, description, text.into_bytes(), message)?;
    }
    let short = &digest.to_string()[1..];
    add("sums-short-digest", "The digest has 63 digits.", format!("{short}  {name}\n").into_bytes(), &[malformed])?;
    add(
        "sums-longer-digest",
        "The digest has 128 digits, as SHA-512 has.",
        format!("{digest}{digest}  {name}\n").into_bytes(),
        &[malformed],
    )?;
    add("sums-empty", "The sums file is empty.", Vec::new(), &["it is empty"])?;
    add("sums-only-newline", "The sums file is one line end.", b"\n".to_vec(), &["line 1", malformed])?;
    add(
        "sums-nul",
        "A NUL byte after the name, where a program in C stops reading.",
        format!("{digest}  {name}\0.old\n").into_bytes(),
        &["it is not ASCII text"],
    )?;
    add(
        "sums-look-alike",
        "The first letter of the name is a Cyrillic one that looks the same.",
        line(digest, &name.replacen('s', "\u{455}", 1)).into_bytes(),
        &["it is not ASCII text"],
    )?;
    add(
        "sums-byte-order-mark",
        "The file begins with the mark that some editors leave.",
        format!("\u{feff}{correct}").into_bytes(),
        &["it is not ASCII text"],
    )?;
    add(
        "sums-line-separator",
        "A line ends in U+2028, which some programs take for the end of a line.",
        format!("{}\u{2028}{correct}", correct.trim_end()).into_bytes(),
        &["it is not ASCII text"],
    )?;
    add(
        "sums-control-characters",
        "The name in the sums clears the terminal and paints an answer of its own.",
        line(digest, "\x1b[2J\x1b[32mverified").into_bytes(),
        &[malformed, "\\u{1b}[2J"],
    )?;
    cases.push(
        Made::archive(material, "sums-too-large", "A sums file of a gigabyte.", good)?
            .prepare(Preparation::Resize { path: "self-hosted-v1.2.3.tar.gz_SHA256SUMS".into(), size: 1 << 30 })
            .refused(14, &["more than the limit of 65536"]),
    );
    cases.push(
        Made::archive(material, "sums-missing", "There is no sums file.", good)?
            .without_file("self-hosted-v1.2.3.tar.gz_SHA256SUMS")
            .refused(66, &["cannot read", "_SHA256SUMS"]),
    );
    let renamed = Package { name: "self-hosted-v9.9.9.tar.gz".into(), ..good.clone() };
    cases.push(
        Made::archive(
            material,
            "archive-renamed",
            "An old release is offered as a new one by its file names.",
            &renamed,
        )?
        .refused(14, &["it has no line for \"self-hosted-v9.9.9.tar.gz\"", "\"self-hosted-v1.2.3.tar.gz\""]),
    );
    Ok(cases)
}

/// Step 5: the archive has the digest that was signed.
fn archives(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, good, .. } = material;
    let archive = &good.archive;
    let mut cases = Vec::new();
    let mut add = |name, description, archive: Vec<u8>| -> anyhow::Result<()> {
        let package = good.clone().with_archive(archive);
        let message = ["the archive is not the one that was signed", &good.digest().to_string(), "download it again"];
        cases.push(Made::archive(material, name, description, &package)?.refused(15, &message));
        Ok(())
    };
    let mut flipped = archive.clone();
    flipped[archive.len() / 2] ^= 0x10;
    add("archive-changed", "One bit of the archive is wrong.", flipped)?;
    add("archive-truncated", "The download was cut off.", archive[..archive.len() * 2 / 3].to_vec())?;
    add("archive-empty", "The archive is an empty file.", Vec::new())?;
    add("archive-is-text", "An error page was saved as the archive.", b"<html><body>403</body></html>\n".to_vec())?;
    add(
        "archive-trailing-garbage",
        "Something stands after the archive, where gzip and tar do not look.",
        [archive, &b"garbage"[..]].concat(),
    )?;
    add("archive-twice", "The archive is followed by itself.", archive.repeat(2))?;
    let older = Release::of_version("v1.2.2").package(vendor)?;
    add("archive-of-older-release", "An older archive under the name of this one.", older.archive.clone())?;
    let both = good.clone().with_sums(vendor, [older.sums, good.sums.clone()].concat())?.with_archive(older.archive);
    cases.push(
        Made::archive(
            material,
            "archive-of-older-release-in-the-sums",
            "An older archive under the name of this one; the sums name both.",
            &both,
        )?
        .refused(15, &["the archive is not the one that was signed"]),
    );
    cases.push(
        Made::archive(material, "archive-too-large", "An archive of 40 GB, which must not be copied first.", good)?
            .prepare(Preparation::Resize { path: good.name.clone().into(), size: 40_000_000_000 })
            .refused(15, &["larger than the limit"]),
    );
    cases.push(
        Made::archive(material, "archive-missing", "There is no archive.", good)?
            .without_file(&good.name)
            .refused(66, &["cannot read", &good.name]),
    );
    Ok(cases)
}
