//! Hostile releases, and good ones: `spacelift-bundle verify` must refuse the former at the right step, with the right exit
//! code and a message that helps, and accept the latter.
//!
//! The inputs are data, in `data/attacks`, one directory per case and each a test of its own here; `attacks/make.rs` makes
//! them. What cannot be kept as data, such as a full disk, is in `attacks/conditions.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::case::Case;
use integration_tests::program;
use integration_tests::run::{Finished, finish};

mod conditions;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

macro_rules! cases {
    ($($name:ident)*) => {
        const CASES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

// One per directory in `data/attacks`, in the order in which `make-attacks` makes them.
cases! {
    good
    good_sums_only
    good_with_unknown_signature
    good_with_signature_of_unknown_version
    good_with_signature_of_unknown_algorithm
    good_without_issuer
    good_threshold_two
    good_old_and_new_certificate
    good_second_signer_joined_later
    good_certificate_named_twice
    good_several_sums_lines
    good_sums_and_signature_elsewhere
    good_primary_key_signs
    good_rsa_2048
    good_rotated_subkey
    good_renewed_subkey
    good_sha256_certificate
    good_shapes
    good_binaries
    good_next_version
    good_rebuilt
    good_image
    good_keys
    good_manifest_in_another_order
    signature_empty
    signature_is_text
    signature_is_garbage
    signature_armored
    signature_clear_signed
    signature_inline_signed
    signature_inline_signed_sums
    signature_before_a_message
    signature_compressed
    signature_is_a_certificate
    signature_with_trailing_garbage
    signature_with_trailing_packet
    signature_truncated
    signature_of_unknown_version
    signature_text_mode
    signature_of_unknown_type
    signature_too_many
    signature_too_large
    signature_missing
    signature_by_unpinned
    signature_by_certificate_in_release
    signature_by_nobody
    signature_claims_pinned_signer
    signature_over_another_file
    signature_over_the_archive
    signature_of_another_release
    signature_damaged
    sums_changed_after_signing
    archive_and_sums_replaced
    signature_bad_and_good
    threshold_one_key_twice
    threshold_two_subkeys_of_one_certificate
    threshold_two_certificates_with_one_subkey
    threshold_second_signer_unknown
    threshold_more_than_pinned
    threshold_zero
    certificate_is_not_one
    signature_sha1
    signature_md5
    signature_ripemd160
    signature_sha224
    signature_version_3
    signature_critical_notation
    signature_in_the_future
    signature_before_the_key
    signature_expired
    signature_without_time
    certificate_expired
    subkey_expired
    certificate_revoked
    certificate_retired
    certificate_revoked_with_sha1
    certificate_revoked_with_md5
    subkey_revoked
    subkey_superseded
    signature_made_while_expired
    signature_made_while_certificate_expired
    signature_made_while_revoked
    signature_made_while_certificate_revoked
    signature_by_certifying_key
    signature_by_authentication_subkey
    signature_rsa_1024
    certificate_bound_with_sha1
    subkey_bound_with_sha1
    subkey_without_back_signature
    certificate_from_the_future
    signature_by_attached_subkey
    certificate_revoked_in_another_copy
    signature_good_and_expired
    threshold_second_signature_sha1
    sums_for_another_file
    sums_for_another_version
    sums_name_is_longer
    sums_name_is_longer_in_front
    sums_name_is_shorter
    sums_name_in_other_case
    sums_two_lines
    sums_two_lines_right_one_last
    sums_two_equal_lines
    sums_two_lines_for_another_file
    sums_garbage_line_after
    sums_garbage_line_before
    sums_comment
    sums_blank_line
    sums_blank_line_at_end
    sums_crlf
    sums_cr
    sums_no_newline
    sums_absolute_path
    sums_directory
    sums_parent_directory
    sums_upper_case
    sums_binary_marker
    sums_one_space
    sums_tab
    sums_bsd_form
    sums_escaped
    sums_trailing_space
    sums_short_digest
    sums_longer_digest
    sums_empty
    sums_only_newline
    sums_nul
    sums_look_alike
    sums_byte_order_mark
    sums_line_separator
    sums_control_characters
    sums_too_large
    sums_missing
    archive_renamed
    archive_changed
    archive_truncated
    archive_empty
    archive_is_text
    archive_trailing_garbage
    archive_twice
    archive_of_older_release
    archive_of_older_release_in_the_sums
    archive_too_large
    archive_missing
    signed_empty_archive
    signed_plain_gzip
    signed_plain_tar
    signed_xz
    signed_trailing_garbage
    signed_trailing_zeros
    signed_trailing_gzip
    signed_truncated
    signed_truncated_in_header
    signed_truncated_between_members
    gzip_length_too_large
    gzip_length_too_small
    gzip_length_tiny
    gzip_length_huge
    gzip_wrong_crc
    gzip_size_too_small
    gzip_size_huge
    gzip_size_zero
    gzip_size_too_large
    gzip_bomb
    gzip_bomb_in_disguise
    gzip_damaged
    gzip_name_in_header
    gzip_data_inside_a_member
    gzip_one_byte_inside_a_member
    gzip_hidden_member
    gzip_empty_member
    tar_symlink
    tar_symlink_for_directory
    tar_symlink_for_root
    tar_hard_link
    tar_character_device
    tar_block_device
    tar_fifo
    tar_contiguous
    tar_unknown_kind
    tar_volume_label
    tar_continued
    tar_directory_dump
    tar_ancient_kind
    tar_directory_for_file
    tar_pax_size
    tar_pax_path
    tar_pax_link
    tar_pax_sparse
    tar_pax_harmless
    tar_pax_global
    tar_pax_global_first
    tar_gnu_long_name
    tar_gnu_long_link
    tar_sparse
    tar_parent_directory
    tar_parent_directory_inside
    tar_absolute_path
    tar_outside_root
    tar_dot
    tar_backslash
    tar_name_in_other_case
    tar_control_characters
    tar_name_not_utf8
    tar_name_empty
    tar_name_with_slash
    tar_name_split
    tar_setuid
    tar_setgid
    tar_sticky
    tar_world_writable
    tar_executable
    tar_file_type_in_mode
    tar_owner
    tar_group
    tar_owner_name
    tar_modification_time
    tar_device_number
    tar_gnu_header
    tar_ancient_header
    tar_data_in_header
    tar_link_name_on_file
    tar_size_larger
    tar_size_smaller
    tar_size_10_gb
    tar_size_in_binary
    tar_size_nonsense
    tar_header_checksum
    tar_data_in_padding
    tar_manifest_huge
    tar_manifest_size_nonsense
    tar_manifest_setuid
    tar_manifest_is_a_link
    tar_manifest_signature_huge
    tar_manifest_signature_size_nonsense
    tar_root_world_writable
    tar_root_elsewhere
    tar_root_of_another_version
    tar_duplicate_file
    tar_duplicate_file_in_between
    tar_duplicate_directory
    tar_duplicate_manifest
    tar_duplicate_manifest_signature
    tar_extra_file
    tar_extra_file_in_between
    tar_extra_file_first
    tar_extra_directory
    tar_missing_file
    tar_missing_last_file
    tar_missing_directory
    tar_missing_root
    tar_missing_manifest
    tar_missing_manifest_signature
    tar_wrong_order
    tar_manifest_not_first
    tar_no_end
    tar_half_an_end
    tar_data_after_end
    tar_data_in_end
    tar_more_zeros
    tar_garbage_for_end
    tar_two_streams
    tar_two_streams_in_two_members
    manifest_signature_empty
    manifest_signature_armored
    manifest_signature_by_unpinned
    manifest_signature_by_unpinned_second
    manifest_signature_of_another
    manifest_signature_sha1
    manifest_signature_in_the_future
    manifest_signature_by_revoked_subkey
    manifest_empty
    manifest_not_json
    manifest_truncated
    manifest_not_utf8
    manifest_byte_order_mark
    manifest_two_documents
    manifest_nested
    manifest_nested_field
    manifest_unknown_field
    manifest_unknown_field_of_file
    manifest_control_characters
    manifest_same_field_twice
    manifest_format_2
    manifest_format_2_with_new_field
    manifest_format_missing
    manifest_format_text
    manifest_field_missing
    manifest_sequence_negative
    manifest_sequence_float
    manifest_version_bad
    manifest_version_traversal
    manifest_product_traversal
    manifest_product_empty
    manifest_channel_bad
    manifest_commit_bad
    manifest_source_control_characters
    manifest_target_control_characters
    manifest_image_name_control_characters
    manifest_image_platform_control_characters
    manifest_path_traversal
    manifest_path_traversal_inside
    manifest_path_absolute
    manifest_path_dot
    manifest_path_double_slash
    manifest_path_directory
    manifest_path_empty
    manifest_path_backslash
    manifest_path_nul
    manifest_path_newline
    manifest_path_control_characters
    manifest_path_look_alike
    manifest_path_right_to_left
    manifest_path_too_long
    manifest_path_duplicate
    manifest_path_unsorted
    manifest_lists_itself
    manifest_lists_its_signature
    manifest_lists_a_launcher_signature
    manifest_file_and_directory
    manifest_file_above_file
    manifest_as_directory
    manifest_mode_setuid
    manifest_mode_wrong
    manifest_kind_wrong
    manifest_kind_unknown
    manifest_digest_upper_case
    manifest_size_negative
    manifest_size_huge
    manifest_total_huge
    manifest_too_many_files
    manifest_image_not_listed
    manifest_image_missing
    manifest_path_component_too_long
    manifest_image_twice
    manifest_images_unsorted
    manifest_path_does_not_fit
    file_changed
    file_changed_version
    file_changed_binary
    file_changed_key
    file_changed_image
    file_changed_image_end
    file_empty_with_other_digest
    file_binary_huge
    version_file_of_another_version
    version_file_without_newline
    version_file_with_more
    version_file_control_characters
    version_file_missing
    archive_named_as_another_version
    archive_named_as_another_product
    launcher_of_another_version
    launcher_of_another_commit
    bundle_of_another_version
    arm64_under_x86_64_name
    x86_64_under_arm64_name
    binary_with_note_for_another_target
    binary_under_another_name
    binary_with_interpreter
    binary_with_library
    binary_is_a_script
    binary_is_empty
    binary_truncated
    binary_for_another_processor
    binary_without_note
    binary_with_two_notes
    binary_with_control_characters
    binary_with_later_note
    binary_extra
    launcher_missing
    launcher_signature_missing
    launcher_signatures_out_of_order
    launcher_signature_by_stranger
    launcher_signature_of_another
    launcher_signature_empty
    directory_launchers
    directory_launcher_signature_missing
    directory_launcher_signature_changed
    directory_launcher_threshold_two
    bundle_missing
    target_unknown
    worker_missing
    worker_section_missing
    worker_tampered
    worker_of_another_version
    worker_of_another_version_in_note
    worker_of_another_commit
    worker_for_another_processor
    worker_is_another_program
    worker_with_interpreter
    worker_is_a_script
    worker_without_note
    worker_damaged
    worker_truncated
    worker_with_more
    worker_bomb
    worker_huge
    image_label_of_another_version
    image_label_of_another_commit
    image_label_missing
    image_label_on_second_platform
    image_label_control_characters
    image_listed_under_two_names
    image_digest_of_another
    image_exchanged
    image_platforms_of_another
    image_blob_corrupted
    image_blob_missing
    image_blob_extra
    image_file_extra
    image_two_descriptions
    image_is_empty
    image_is_text
    image_compressed
    image_truncated
    image_with_data_after_end
    image_with_duplicate
    image_with_link
    image_with_parent_directory
    image_with_pax_size
    key_with_secret
    key_with_secret_binary
    key_with_secret_as_certificate
    key_under_another_name
    key_is_none
    key_two_in_one_file
    key_with_another_secret
    key_with_secret_development
    development
    development_accepted
    upgrade
    upgrade_to_the_same
    rollback_by_sequence
    rollback_by_sequence_accepted
    rollback_by_version
    rollback_by_version_accepted
    rollback_to_candidate
    rollback_by_far
    rollback_with_other_flags
    same_sequence_other_version
    same_sequence_other_version_with_flags
    another_product
    another_product_with_flags
    skipped_version
    skipped_version_accepted
    skipped_version_with_other_flags
    required_version_installed
    development_over_release
    installed_manifest_bad
    rollback_flag_alone
    directory
    directory_umask_077
    directory_threshold_two
    directory_file_changed
    directory_file_longer
    directory_file_shorter
    directory_file_missing
    directory_empty_file_missing
    directory_file_extra
    directory_hidden_file_extra
    directory_directory_extra
    directory_name_with_control_characters
    directory_name_not_utf8
    directory_file_is_a_link
    directory_directory_is_a_link
    directory_manifest_is_a_link
    directory_manifest_is_a_directory
    directory_link_extra
    directory_file_is_a_pipe
    directory_manifest_is_a_pipe
    directory_file_is_a_directory
    directory_executable_bit_lost
    directory_executable_bit_added
    directory_executable_bit_added_for_others
    directory_setuid
    directory_setgid
    directory_world_writable
    directory_manifest_changed
    directory_manifest_signed_by_unpinned
    directory_manifest_signature_empty
    directory_manifest_signature_missing
    directory_manifest_missing
    directory_manifest_too_large
    directory_manifest_signature_too_large
    directory_threshold_not_met
    directory_with_arguments_of_archives
    directory_version_of_another
    directory_version_missing
    directory_development
    directory_rollback
    directory_certificate_expired
}

/// A directory without a line in the list would never be run.
#[test]
fn every_case_has_a_test_and_every_test_a_case() {
    let listed: BTreeSet<String> = CASES.iter().map(|name| name.replace('_', "-")).collect();
    let kept: BTreeSet<String> = fs::read_dir(data().join("attacks"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let missing: Vec<_> = kept.difference(&listed).map(|name| name.replace('-', "_")).collect();
    assert!(missing.is_empty(), "add to the list of cases: {missing:?}");
    let gone: Vec<_> = listed.difference(&kept).collect();
    assert!(gone.is_empty(), "run `cargo run -p integration-tests --bin make-attacks` or take out: {gone:?}");
}

/// A copy of one case, and the directories that belong to it.
struct Stage {
    /// Removed with everything in it at the end.
    _root: tempfile::TempDir,
    case: Case,
    /// The copy of the case, where the program runs.
    copy: PathBuf,
    /// Where the program puts what it needs in between.
    work: PathBuf,
    /// Where it unpacks to.
    unpacked: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Self {
        let directory = data().join("attacks").join(name.replace('_', "-"));
        let case = Case::read(&directory).unwrap();
        let root = tempfile::tempdir().unwrap();
        let (copy, work, unpacked) = (root.path().join("case"), root.path().join("work"), root.path().join("unpacked"));
        case.set_up(&directory, &copy).unwrap();
        fs::create_dir(&work).unwrap();
        fs::create_dir(&unpacked).unwrap();
        Self { _root: root, case, copy, work, unpacked }
    }

    /// The command that verifies a release as the case says.
    fn command(&self, release: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program::bundle());
        command.arg("verify").arg(release);
        for certificate in &self.case.certificates {
            command.arg("--cert").arg(data().join("certs").join(certificate));
        }
        command.args(&self.case.arguments).args(more).current_dir(&self.copy).env("TMPDIR", &self.work);
        command
    }

    fn verify(&self, release: &Path, more: &[&str]) -> Finished {
        finish(&mut self.command(release, more))
    }
}

fn run(name: &str) {
    let stage = Stage::new(name);
    let case = &stage.case;
    let release = Path::new(&case.release);
    let before = tree(&stage.copy);
    check(case, &stage.verify(release, &[]));
    assert!(is_empty(&stage.work), "it left something in its work directory");
    assert_eq!(tree(&stage.copy), before, "it changed something beside the release");

    if stage.copy.join(release).is_dir() || case.arguments.iter().any(|argument| argument == "--sums-only") {
        return;
    }
    // What is wrong inside the archive is not looked for when only its sums are checked; everything else is.
    let exit = if (16..=19).contains(&case.exit) { 0 } else { case.exit };
    check_printable(&stage.verify(release, &["--sums-only"]).expect(exit.into()));

    // The same while unpacking, which is another way through the same steps, with an answer for machines.
    let target = stage.unpacked.join("release");
    check_json(case, &stage.verify(release, &["--json", "--unpack", target.to_str().unwrap()]));
    assert!(is_empty(&stage.work), "it left something in its work directory");
    if case.exit != 0 {
        assert!(is_empty(&stage.unpacked), "something of a rejected release was left: {:?}", tree(&stage.unpacked));
        return;
    }
    assert_eq!(fs::read_dir(&stage.unpacked).unwrap().count(), 1, "it left something beside what it unpacked");
    if case.arguments.iter().any(|argument| argument == "--sums") {
        return;
    }
    stage.verify(&target, &[]).expect(case.unpacked_exit.unwrap_or(0).into());
}

fn check(case: &Case, finished: &Finished) {
    assert_eq!(finished.code, Some(case.exit.into()), "{}\n{finished}", case.description);
    let (answer, other) = match case.exit {
        0 => (&finished.stdout, &finished.stderr),
        _ => (&finished.stderr, &finished.stdout),
    };
    for part in &case.message {
        assert!(answer.contains(part.as_str()), "{part:?} is not in the answer:\n{answer}");
    }
    assert_eq!(other, "", "the answer is on one of the two outputs");
    if let Some(step) = step(case) {
        assert!(answer.starts_with(&format!("error (verification step {step}): ")), "{answer}");
    }
    check_printable(finished);
}

/// The step of verification that must refuse.
fn step(case: &Case) -> Option<u8> {
    case.exit.checked_sub(10).filter(|step| (1..=9).contains(step))
}

fn check_json(case: &Case, finished: &Finished) {
    assert_eq!(finished.code, Some(case.exit.into()), "{}\n{finished}", case.description);
    check_printable(finished);
    if finished.stdout.is_empty() {
        // Whether JSON is wanted is not known before the arguments are.
        assert_eq!(case.exit, 64, "no JSON document was printed");
        return;
    }
    let document = finished.json();
    assert_eq!(document["ok"], case.exit == 0, "{document}");
    if case.exit == 0 {
        return;
    }
    assert_eq!(document["exit_code"], case.exit, "{document}");
    assert_eq!(document["step"], serde_json::json!(step(case)), "{document}");
    let error = document["error"].as_str().unwrap();
    for part in &case.message {
        assert!(error.contains(part.as_str()), "{part:?} is not in the answer:\n{error}");
    }
}

/// What comes out of a hostile release must not reach the terminal as it is: it could clear the screen, paint an answer of
/// its own or turn the text around.
fn check_printable(finished: &Finished) {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let bad = |text: &str| text.chars().find(|c| c.is_control() && *c != '\n' || turns(*c));
    for text in [&finished.stdout, &finished.stderr] {
        assert_eq!(bad(text), None, "the output holds a control character: {text:?}");
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

/// Every path below a directory.
fn tree(directory: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            paths.extend(tree(&entry.path()));
        }
        paths.insert(entry.path());
    }
    paths
}
