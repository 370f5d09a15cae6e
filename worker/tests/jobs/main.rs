//! Jobs, as the worker does them: the real program, talking to the real service over a socket, outside of a container.

mod launcher;

use std::time::{Duration, Instant};

use spacelift_worker::protocol::{
    Download, File, Hooks, Job, Result as Ended, SourceKind, Stage, Tool, Upload, Variable, Workflow,
};

use launcher::Bench;

fn hooks(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("echo {name}")).collect()
}

fn variable(name: &str, value: &str, secret: bool) -> Variable {
    Variable { name: name.into(), value: value.into(), secret }
}

fn job(stage: Stage) -> Job {
    Job {
        run: "01J0000000000000000000000A".into(),
        stage: stage.into(),
        tool: Tool::Custom.into(),
        stack_id: "mine".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        run_type: "tracked".into(),
        workflow: Some(Workflow {
            init: Some("echo init".into()),
            plan: Some("echo plan".into()),
            apply: Some("echo apply".into()),
            destroy: Some("echo destroy".into()),
            output: None,
        }),
        ..Job::default()
    }
}

fn task(command: &str) -> Job {
    Job { command: Some(command.into()), workflow: Some(Workflow::default()), ..job(Stage::Task) }
}

fn all_hooks() -> Hooks {
    Hooks {
        before_init: hooks(&["before init 1", "before init 2"]),
        after_init: hooks(&["after init"]),
        before_plan: hooks(&["before plan"]),
        after_plan: hooks(&["after plan"]),
        before_apply: hooks(&["before apply"]),
        after_apply: hooks(&["after apply"]),
        before_perform: hooks(&["before perform"]),
        after_perform: hooks(&["after perform"]),
        before_destroy: hooks(&["before destroy"]),
        after_destroy: hooks(&["after destroy"]),
        after_run: hooks(&["after run $TF_VAR_spacelift_final_run_state"]),
    }
}

const INIT: &str = "== Preparing\n== Initializing\nbefore init 1\nbefore init 2\ninit\nafter init\n";

#[tokio::test]
async fn phases_and_hooks_have_their_order() {
    let perform = Job { command: Some("echo perform".into()), ..job(Stage::Task) };
    for (job, expected) in [
        (job(Stage::Plan), "== Planning\nbefore plan\nplan\nafter plan\n"),
        (perform, "== Performing\nbefore perform\nperform\nafter perform\n"),
        (
            job(Stage::Test),
            "== Planning\nbefore plan\nplan\nafter plan\n== Applying\nbefore apply\napply\nafter apply\n== \
             Destroying\nbefore destroy\ndestroy\nafter destroy\n",
        ),
        (job(Stage::Destroy), "== Destroying\nbefore destroy\ndestroy\nafter destroy\n"),
    ] {
        let done = Bench::new(Job { hooks: Some(all_hooks()), ..job }).done().await;
        assert_eq!(done.transcript(), format!("{INIT}{expected}after run FINISHED\n== Finished"));
    }
    let done = Bench::new(Job { hooks: Some(all_hooks()), ..job(Stage::Apply) }).done().await;
    assert_eq!(
        done.transcript(),
        "== Preparing\n== Applying\nbefore apply\napply\nafter apply\nafter run FINISHED\n== Finished"
    );
}

#[tokio::test]
async fn the_environment_carries_over() {
    let hooks = Hooks {
        before_init: vec!["export CARRIED=\"a b\nc\"; unset GONE; LOCAL=1; cd /".into()],
        after_init: vec!["echo \"init $LOCAL $(pwd) $TF_VAR_spacelift_run_state\"".into()],
        before_plan: vec!["echo \"plan $CARRIED ${GONE-gone} ${LOCAL-none} $(basename \"$PWD\")\"".into()],
        after_plan: vec!["env | sort | grep -i -e '^SPACELIFT_' -e '^TF_'; echo $URL".into()],
        ..Hooks::default()
    };
    let job = Job {
        hooks: Some(hooks),
        environment: vec![
            variable("URL", "https://${HOST}/${MISSING}", false),
            variable("HOST", "a.example.com", false),
            variable("GONE", "here", false),
        ],
        ..job(Stage::Plan)
    };
    let mut bench = Bench::new(job);
    let done = bench.done().await;
    let expected = format!(
        "== Preparing\n== Initializing\ninit\ninit 1 / INITIALIZING\n== Planning\nplan a b\nc gone none source\nplan\n\
         SPACELIFT_COMMIT_SHA=0123456789abcdef0123456789abcdef01234567\nSPACELIFT_LOCAL_PREVIEW=false\n\
         SPACELIFT_PROJECT_ROOT=\nSPACELIFT_RUN_ID=01J0000000000000000000000A\nSPACELIFT_RUN_STATE=PLANNING\n\
         SPACELIFT_RUN_TYPE=TRACKED\nSPACELIFT_STACK_ID=mine\nSPACELIFT_WORKSPACE_ROOT={0}\nTF_IN_AUTOMATION=1\n\
         TF_VAR_spacelift_commit_sha=0123456789abcdef0123456789abcdef01234567\nTF_VAR_spacelift_local_preview=false\n\
         TF_VAR_spacelift_project_root=\nTF_VAR_spacelift_run_id=01J0000000000000000000000A\n\
         TF_VAR_spacelift_run_state=PLANNING\nTF_VAR_spacelift_run_type=TRACKED\nTF_VAR_spacelift_stack_id=mine\n\
         TF_VAR_spacelift_workspace_root={0}\nhttps://a.example.com/${{MISSING}}\n== Finished",
        bench.workspace().display()
    );
    assert_eq!(done.transcript(), expected);
}

#[tokio::test]
async fn a_failing_hook_skips_its_phase_and_after_run_is_executed() {
    let hooks = Hooks { before_plan: vec!["echo before; (exit 3)".into(), "echo not me".into()], ..all_hooks() };
    let done = Bench::new(Job { hooks: Some(hooks), ..job(Stage::Plan) }).done().await;
    assert_eq!(
        done.transcript(),
        format!(
            "{INIT}== Planning\nbefore\n[spacelift] Planning failed: exit code 3\nafter run FAILED\n== Failed Planning failed: \
             exit code 3"
        )
    );
    let hooks = Hooks { before_init: vec!["exit 0".into()], ..all_hooks() };
    let done = Bench::new(Job { hooks: Some(hooks), ..job(Stage::Plan) }).done().await;
    assert_eq!(done.outcome.result(), Ended::Failed);
    assert!(done.outcome.message.contains("`exit 0`"), "{}", done.outcome.message);
    assert!(done.text().ends_with("after run FAILED\n"), "{}", done.text());
}

#[tokio::test]
async fn a_test_is_always_destroyed() {
    let workflow = Workflow { plan: Some("false".into()), destroy: Some("echo destroy".into()), ..Workflow::default() };
    let done = Bench::new(Job { workflow: Some(workflow), ..job(Stage::Test) }).done().await;
    assert_eq!(
        done.transcript(),
        "== Preparing\n== Initializing\n== Planning\n[spacelift] Planning failed: exit code 1\n== Destroying\ndestroy\n\
         == Failed Planning failed: exit code 1"
    );
}

#[tokio::test]
async fn a_stop_has_a_grace_and_then_kills() {
    let hooks = Hooks { after_run: hooks(&["after run $TF_VAR_spacelift_final_run_state"]), ..Hooks::default() };
    let kind = "trap 'echo asked; exit 1' TERM; echo ready; while :; do sleep 0.05; done";
    let stubborn = "trap 'echo asked' TERM; echo ready; (trap '' TERM; sleep 1000) & while :; do sleep 0.05; done";
    for (command, least, most) in [(kind, 0, 5), (stubborn, 1, 6)] {
        let mut bench = Bench::new(Job { hooks: Some(hooks.clone()), ..task(command) });
        bench.start();
        bench.until_logged("ready").await;
        let begin = Instant::now();
        bench.stop(Duration::from_secs(1), "somebody said so").await;
        let done = bench.done().await;
        assert_eq!(
            // The shell says this of its child, or not.
            done.transcript().replace("Terminated\n", ""),
            "== Preparing\n== Initializing\n== Performing\nready\nasked\n[spacelift] stopped: somebody said so\nafter run \
             STOPPED\n== Stopped somebody said so"
        );
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(least) && took < Duration::from_secs(most), "{took:?}");
    }
}

#[tokio::test]
async fn a_signal_is_a_stop() {
    let mut bench = Bench::new(task("echo ready; sleep 1000"));
    let worker = bench.start();
    bench.until_logged("ready").await;
    let worker = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::TERM).unwrap();
    let done = bench.done().await;
    assert_eq!(done.outcome.result(), Ended::Stopped);
    assert!(done.outcome.message.contains("SIGTERM"), "{}", done.outcome.message);
}

#[tokio::test]
async fn what_a_phase_leaves_behind_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let command = format!(
        "sleep 1000 & echo $! >{0}; setsid sleep 1000 & sh -c 'echo $$ >>{0}; exec setsid sleep 1000' & sleep 0.3; echo done",
        pids.display()
    );
    let begin = Instant::now();
    let done = Bench::new(task(&command)).done().await;
    assert_eq!(done.text(), "done\n");
    assert_eq!(done.outcome.result(), Ended::Finished);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!command.starts_with("sleep"), "{pid} lives");
    }
}

#[tokio::test]
async fn orphans_are_reaped_and_jobs_are_ended_before_the_worker() {
    // The worker is the parent of the shell, and then of its orphans.
    let command = "(sleep 0.1 &); (sleep 0.2 &); sleep 2; cat /proc/[0-9]*/stat 2>/dev/null | awk -v p=$PPID -v s=$$ '$4 == p && \
                   $1 != s'; cat /proc/$$/oom_score_adj";
    let done = Bench::new(task(command)).done().await;
    assert_eq!(done.text(), "500\n");
}

#[tokio::test]
async fn secrets_are_not_in_the_log() {
    let job = Job {
        environment: vec![
            variable("TOKEN", "hunter2-${SUFFIX}", true),
            variable("SUFFIX", "xyz", false),
            variable("LISTED", "listed-value", false),
        ],
        mask: vec!["LISTED".into(), "FROM_CONTAINER".into()],
        mask_values: vec!["bare-value".into()],
        files: vec![File {
            path: "key.pem".into(),
            contents: b"-----BEGIN-----\nc2VjcmV0\n-----END-----\n".to_vec(),
            mode: 0o600,
            secret: true,
        }],
        ..task(
            "printf '%s ' hunt; sleep 0.2; printf %s hunter; sleep 0.2; echo 2-xyz $LISTED $FROM_CONTAINER bare-value; printf \
             %s $TOKEN | base64; cat ../key.pem; echo ::add-mask added-value; echo added-value; exit $(echo 7)",
        )
    };
    let done = Bench::new(job).environment("FROM_CONTAINER", "container-value").done().await;
    assert_eq!(
        done.text(),
        "hunt *** *** *** ***\n***\n***::add-mask ***\n***\n[spacelift] Performing failed: exit code 7\n"
    );
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_connections_break() {
    let mut bench =
        Bench::new(task("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.002; done")).breaking_after(7);
    let done = bench.done().await;
    let expected: String = (0..300).map(|line| format!("line {line}\n")).collect();
    assert_eq!(done.text(), expected);
    assert!(bench.connections() > 5, "{}", bench.connections());
}

#[tokio::test]
async fn a_launcher_that_takes_nothing_makes_the_job_wait() {
    let mut bench =
        Bench::new(task("echo begin; head -c 60000000 /dev/zero | tr '\\0' x; echo; echo written >../mark; echo end"));
    bench.start();
    bench.until_logged("begin").await;
    bench.be_deaf(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mark = bench.workspace().join("mark");
    assert!(!mark.exists(), "all of it was taken although the launcher took nothing");
    bench.be_deaf(false);
    let done = bench.done().await;
    assert_eq!(done.log().len(), "begin\n\nend\n".len() + 60_000_000);
    assert!(mark.exists());
}

#[tokio::test]
async fn a_very_long_line_needs_little_memory() {
    let job = Job {
        mask_values: vec!["xxxy".into()],
        ..task("head -c 100000000 /dev/zero | tr '\\0' x; printf y; echo; grep VmHWM /proc/$PPID/status")
    };
    let done = Bench::new(job).done().await;
    let log = done.log();
    let (line, rest) = log.split_at(100_000_000 - 3);
    assert!(line.iter().all(|&byte| byte == b'x'));
    let rest = str::from_utf8(rest).unwrap().strip_prefix("***\nVmHWM:").unwrap();
    let kilobytes: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 100_000, "{kilobytes} kB");
}

#[tokio::test]
async fn a_missing_tool_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let job = Job { tool: Tool::OpenTofu.into(), workflow: None, ..job(Stage::Plan) };
    let done = Bench::new(job).environment("PATH", empty.path()).done().await;
    assert_eq!(done.outcome.result(), Ended::Failed);
    for text in [&done.outcome.message, &done.text()] {
        assert!(
            text.contains("the runner image has no program `tofu` in its PATH; use an image that has it"),
            "{text}"
        );
    }
}

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, kind, contents) in entries {
        let mut header = tar::Header::new_gnu();
        // The library would refuse a name that leads outside.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
            header.as_old_mut().linkname[..contents.len()].copy_from_slice(contents.as_bytes());
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        } else {
            header.set_size(contents.len() as u64);
            header.set_cksum();
            builder.append(&header, contents.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[tokio::test]
async fn the_source_configures_its_runs_and_mounted_files_win() {
    use tar::EntryType::Regular;
    let config = "version: 1\nstack_defaults: {before_init: ['echo from the defaults']}\nstacks:\n  mine:\n    before_plan: ['echo \
                  from the config $CONFIGURED']\n    environment: {CONFIGURED: 1}\n    project_root: sub\n    runner_image: x\n";
    let source = archive(&[
        (".spacelift/config.yml", Regular, config),
        (".spacelift/workflow.yml", Regular, "init: echo own init\nplan: cat file ../other; pwd"),
        ("sub/file", Regular, "in the source\n"),
        ("other", Regular, "in the source\n"),
    ]);
    let mount = |path: &str| File { path: path.into(), contents: b"mounted\n".to_vec(), mode: 0o644, secret: false };
    let job = Job {
        source: SourceKind::Archive.into(),
        files: vec![mount("source/sub/file"), mount("elsewhere/x")],
        hooks: Some(Hooks { before_init: hooks(&["no"]), before_plan: hooks(&["no"]), ..Hooks::default() }),
        ..job(Stage::Plan)
    };
    let mut bench = Bench::new(job).download(Download::Source, source);
    let done = bench.done().await;
    assert_eq!(
        done.transcript(),
        format!(
            "== Preparing\n[spacelift] `runner_image` in `.spacelift/config.yml` (x) has no effect here: the container was made \
             before the source was known\n== Initializing\nfrom the defaults\nown init\n== Planning\nfrom the config \
             1\nmounted\nin the source\n{}/source/sub\n== Finished",
            bench.workspace().display()
        )
    );
    assert_eq!(std::fs::read(bench.workspace().join("elsewhere/x")).unwrap(), b"mounted\n");
}

#[tokio::test]
async fn an_archive_that_is_made_to_do_harm_is_refused() {
    use tar::EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    let target = target.to_str().unwrap();
    let directory = outside.path().to_str().unwrap();
    for entries in [
        vec![("../harm", Regular, "x")],
        vec![("a/../../harm", Regular, "x")],
        vec![(target, Regular, "x")],
        vec![("link", Symlink, directory), ("link/target", Regular, "x")],
        vec![("up", Symlink, ".."), ("up/harm", Regular, "x")],
        vec![("hard", Link, "/etc/passwd")],
        vec![("hard", Link, "../../launcher.sock")],
        vec![("device", Char, "")],
        vec![("device", Block, "")],
        vec![("pipe", Fifo, "")],
    ] {
        let job = Job { source: SourceKind::Archive.into(), ..job(Stage::Plan) };
        let mut bench = Bench::new(job).download(Download::Source, archive(&entries));
        let done = bench.done().await;
        assert_eq!(done.outcome.result(), Ended::Unable, "{entries:?}");
        assert!(done.outcome.message.starts_with("the source cannot be unpacked: "), "{}", done.outcome.message);
        assert!(!bench.workspace().join("harm").exists(), "{entries:?}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{entries:?}");
    }
    // And one that was cut off.
    let mut cut = archive(&[("file", Regular, &"text".repeat(10_000))]);
    cut.truncate(cut.len() - 20);
    let job = Job { source: SourceKind::Archive.into(), ..job(Stage::Plan) };
    let done = Bench::new(job).download(Download::Source, cut).done().await;
    assert_eq!(done.outcome.result(), Ended::Unable);
}

#[tokio::test]
async fn a_workspace_goes_from_one_container_to_the_next() {
    let workflow = Workflow {
        plan: Some(
            "export CARRIED=1; echo ::add-mask added-value; umask 0; printf x >script; chmod 751 script; ln -s /nowhere/else link; \
             mkdir -p deep/er; touch -d @1000000000 deep/er/old; chmod 500 deep; mkfifo pipe; truncate -s 9G large; printf '\\377' | \
             xargs -0 touch; ln script hard; chmod 400 script"
                .into(),
        ),
        apply: Some("ls; echo $CARRIED added-value $FRESH $TF_VAR_spacelift_run_state".into()),
        ..Workflow::default()
    };
    let plan = Job { keep_workspace: true, workflow: Some(workflow.clone()), ..job(Stage::Plan) };
    let mut first = Bench::new(plan);
    let done = first.done().await;
    assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.outcome.message);
    assert!(done.text().contains("`source/pipe` is no file"), "{}", done.text());
    let kept = first.uploaded(Upload::Workspace).unwrap();
    let apply = Job {
        restore_workspace: true,
        workflow: Some(workflow),
        environment: vec![variable("FRESH", "fresh", false)],
        ..job(Stage::Apply)
    };
    let mut second = Bench::new(apply).download(Download::Workspace, kept);
    let done = second.done().await;
    assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.outcome.message);
    assert!(
        String::from_utf8_lossy(&done.log()).ends_with("1 *** fresh APPLYING\n"),
        "{:?}",
        String::from_utf8_lossy(&done.log())
    );
    // Names, modes, sizes, times in whole seconds, which is what an archive has, and where links lead.
    let listing = |bench: &Bench| {
        let find = std::process::Command::new("find")
            .args([".", "-mindepth", "1", "!", "-type", "p", "-printf", "%p %y %m %s %Ts %l\\n"])
            .current_dir(bench.workspace().join("source"))
            .output()
            .unwrap();
        let mut lines: Vec<_> = String::from_utf8_lossy(&find.stdout).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (before, after) = (listing(&first), listing(&second));
    assert_eq!(before, after);
    assert!(before.iter().any(|line| line.starts_with("./deep d 500 ")), "{before:?}");
    assert!(before.iter().any(|line| line.starts_with("./large f 666 9663676416 ")), "{before:?}");
    assert!(before.iter().any(|line| line.starts_with("./deep/er/old f 666 0 1000000000 ")), "{before:?}");
    assert!(!second.workspace().join(".spacelift-environment").exists());
    use std::os::unix::fs::MetadataExt;
    let large = second.workspace().join("source/large").metadata().unwrap();
    assert!(large.blocks() * 512 < 1_000_000, "a sparse file was filled");
}

/// Does a job that would hold up a worker without limits for ever.
async fn done_in_time(job: Job) -> launcher::Done {
    let mut bench = Bench::new(job);
    tokio::time::timeout(Duration::from_secs(60), bench.done()).await.expect("the worker is held up")
}

#[tokio::test]
async fn what_a_job_leaves_for_the_worker_holds_up_nobody() {
    for (leave, expected) in [
        ("mkfifo", "named pipe"),
        ("ln -s /dev/zero", "symbolic link"),
        ("ln -s /proc/self/environ", "symbolic link"),
        ("mkdir", "directory"),
        ("truncate -s 4T", "more than 8388608 bytes"),
    ] {
        // The shell that would have written the file is not there any more.
        let done = done_in_time(task(&format!("exec {leave} ../.spacelift-worker/environment"))).await;
        assert_eq!(done.outcome.result(), Ended::Failed, "{leave}");
        for text in [&done.outcome.message, &done.text()] {
            assert!(text.contains(".spacelift-worker/environment") && text.contains(expected), "{leave}: {text}");
        }
    }
    let with_output = |output: &str| {
        let workflow = Workflow { output: Some(output.into()), ..Workflow::default() };
        Job { workflow: Some(workflow), ..job(Stage::Apply) }
    };
    let done = done_in_time(with_output("truncate -s 4T ../.spacelift-worker/outputs")).await;
    assert_eq!(done.outcome.result(), Ended::Failed);
    assert!(done.outcome.message.contains("more than 16777216 bytes"), "{}", done.outcome.message);
    // What it wrote is what counts, not what has the name now.
    let done = done_in_time(with_output("echo {}; cd ../.spacelift-worker; rm outputs; mkfifo outputs")).await;
    assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.outcome.message);

    let workflow = Workflow { plan: Some("truncate -s 4T large".into()), ..Workflow::default() };
    let done = done_in_time(Job { keep_workspace: true, workflow: Some(workflow), ..job(Stage::Plan) }).await;
    assert_eq!(done.outcome.result(), Ended::Failed);
    assert!(
        done.outcome.message.contains("with `source/large` it has more than 68719476736 bytes"),
        "{:?}",
        done.outcome
    );
}

#[tokio::test]
async fn a_source_that_cannot_be_read_is_named_in_a_few_words() {
    let unknown = format!("version: 1\n? {}\n: x\n", "x".repeat(300_000));
    for (entry, expected) in [
        ((".spacelift/config.yml", tar::EntryType::Symlink, "/proc/self/environ"), "leads out of"),
        ((".spacelift/workflow.yml", tar::EntryType::Symlink, "/dev/zero"), "leads out of"),
        ((".spacelift/config.yml", tar::EntryType::Regular, &unknown), "unknown field"),
    ] {
        let job = Job { source: SourceKind::Archive.into(), ..job(Stage::Plan) };
        let done = Bench::new(job).download(Download::Source, archive(&[entry])).done().await;
        assert_eq!(done.outcome.result(), Ended::Unable, "{}", entry.0);
        let message = &done.outcome.message;
        assert!(message.contains(entry.0) && message.contains(expected) && message.len() < 10_000, "{message}");
    }
}

#[tokio::test]
async fn process_1_does_its_duties() {
    let command = "echo $PPID; setsid sh -c 'echo $$ >../pid; trap \"\" TERM HUP; sleep 1000' & (sleep 0.1 &); sleep 0.5; \
                   ls -d /proc/[0-9]* | wc -l; head -c 3000 /dev/zero | wc -c";
    let mut bench = Bench::new(Job {
        hooks: Some(Hooks { after_run: vec!["cat /proc/[0-9]*/comm".into()], ..Hooks::default() }),
        ..task(command)
    });
    bench.start_as_process_1();
    let done = bench.done().await;
    assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.transcript());
    assert!(done.text().starts_with("1\n"), "{}", done.text());
    // Nothing of the phase is left when the last hook looks.
    assert!(done.text().ends_with("\n3000\nspacelift-worke\nsh\n"), "{}", done.text());
}

#[tokio::test]
async fn a_launcher_that_is_restarted_finds_everything() {
    let mut bench = Bench::new(task("echo before; while ! test -e ../go; do sleep 0.02; done; echo after"));
    bench.start();
    bench.until_logged("before").await;
    bench.restart(|workspace| std::fs::write(workspace.join("go"), "").unwrap()).await;
    let done = bench.done().await;
    assert_eq!(done.text(), "before\nafter\n");
    assert!(bench.connections() > 1);
}

fn git(directory: &std::path::Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("git does not start: apt-get install git");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_commit_comes_from_a_repository() {
    let repository = tempfile::tempdir().unwrap();
    git(repository.path(), &["init", "-q", "."]);
    let mut commits = Vec::new();
    for text in ["one", "two"] {
        std::fs::write(repository.path().join("file"), text).unwrap();
        git(repository.path(), &["add", "."]);
        git(repository.path(), &["commit", "-qm", text]);
        commits.push(git(repository.path(), &["rev-parse", "HEAD"]));
    }
    git(repository.path(), &["config", "uploadpack.allowAnySHA1InWant", "false"]);
    let address = format!("file://{}", repository.path().display());
    for (commit, reference, expected) in [
        (&commits[1], None, "two"),
        (&commits[1], Some("main"), "two"),
        (&commits[0], Some("main"), "one"),
        (&commits[0], None, "one"),
    ] {
        let git = spacelift_worker::protocol::Git {
            url: address.clone(),
            commit: commit.clone(),
            reference: reference.map(str::to_owned),
        };
        let job = Job { source: SourceKind::Git.into(), git: Some(git), ..task("cat file; git status --short") };
        let done = Bench::new(job).done().await;
        assert!(done.text().ends_with(expected), "{}", done.transcript());
    }
    // Nothing is taken for a flag or a program, and a password is not shown.
    for (url, commit, reference) in [
        (&*address, "--upload-pack=x", None),
        (&address, &commits[0], Some("--upload-pack=x")),
        ("ext::sh -c touch% harm", &commits[0], None),
        ("http://user:hunter2@127.0.0.1:9/x", &commits[0], None),
    ] {
        let git = spacelift_worker::protocol::Git {
            url: url.into(),
            commit: commit.into(),
            reference: reference.map(str::to_owned),
        };
        let job = Job { source: SourceKind::Git.into(), git: Some(git), ..task("true") };
        let done = Bench::new(job).done().await;
        assert_eq!(done.outcome.result(), Ended::Unable, "{}", done.transcript());
        assert!(!done.transcript().contains("hunter2"), "{}", done.transcript());
    }
}

#[tokio::test]
async fn a_log_that_cannot_mask_everything_shows_nothing() {
    // Many, each of which has no form in common with another.
    let mask_values = (0..1500).map(|at| format!("{at:05}/%").repeat(500)).collect();
    let hooks = Hooks { after_run: vec!["echo shown".into()], ..Hooks::default() };
    let done = Bench::new(Job { mask_values, hooks: Some(hooks), ..job(Stage::Plan) }).done().await;
    assert_eq!(done.outcome.result(), Ended::Unable);
    assert_eq!(done.text(), "");
    assert!(done.outcome.message.contains("too many secrets"), "{}", done.outcome.message);
}

#[tokio::test]
async fn debugging_shows_the_commands() {
    let job = Job { debug: true, mask_values: vec!["hunter2".into()], ..task("echo hunter2 >/dev/null") };
    let done = Bench::new(job).done().await;
    assert_eq!(done.text(), "[spacelift] Performing: /bin/sh executes\n{\necho *** >/dev/null\n}\n");
}

#[tokio::test]
async fn a_job_that_cannot_begin_says_why() {
    use tar::EntryType::Regular;
    let archived = |job: Job| Job { source: SourceKind::Archive.into(), ..job };
    let bad_config = archive(&[(".spacelift/config.yml", Regular, "version: 1\nstack_default: {}")]);
    let mount = |path: &str| vec![File { path: path.into(), contents: Vec::new(), mode: 0o600, secret: false }];
    for (job, source, reason) in [
        (archived(job(Stage::Plan)), Some(bad_config), "stack_default"),
        (archived(job(Stage::Plan)), None, "there is none"),
        (Job { workflow: None, ..job(Stage::Plan) }, None, ".spacelift/workflow.yml"),
        (Job { files: mount("../x"), ..job(Stage::Plan) }, None, "`../x` is not inside the workspace"),
        (Job { project_root: "missing".into(), ..job(Stage::Plan) }, None, "`missing` is not a directory"),
        (Job { project_root: "../..".into(), ..job(Stage::Plan) }, None, "`../..` is not inside the source"),
        (Job { environment: vec![variable("A=B", "", false)], ..job(Stage::Plan) }, None, "`A=B`"),
        (Job { command: None, ..task("") }, None, "no command"),
    ] {
        let hooks = Hooks { after_run: hooks(&["after run $SPACELIFT_FINAL_RUN_STATE"]), ..Hooks::default() };
        let mut bench = Bench::new(Job { hooks: Some(hooks), ..job });
        if let Some(source) = source {
            bench = bench.download(Download::Source, source);
        }
        let done = bench.done().await;
        assert_eq!(done.outcome.result(), Ended::Unable, "{reason}");
        assert!(done.outcome.message.contains(reason), "{}", done.outcome.message);
        assert!(done.text().ends_with("after run FAILED\n"), "{reason}: {}", done.text());
    }
}

#[tokio::test]
async fn terraform_plans_in_one_container_and_applies_in_another() {
    use tar::EntryType::Regular;
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join("terraform").is_file());
    assert!(
        found,
        "there is no `terraform` in the PATH: install version 1.4 or later from its vendor (no Debian package has it)"
    );
    let text = "variable \"spacelift_run_id\" {}\nresource \"terraform_data\" \"a\" {\n  input = var.spacelift_run_id\n}\noutput \"plain\" \
                {\n  value = terraform_data.a.output\n}\noutput \"hidden\" {\n  value = \"hidden\"\n  sensitive = true\n}\n";
    let home = tempfile::tempdir().unwrap();
    let plan = Job {
        tool: Tool::Terraform.into(),
        workflow: None,
        source: SourceKind::Archive.into(),
        keep_workspace: true,
        ..job(Stage::Plan)
    };
    let mut first = Bench::new(plan.clone()).environment("HOME", home.path());
    first = first.download(Download::Source, archive(&[("main.tf", Regular, text)]));
    let done = first.done().await;
    assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.transcript());
    let changes = done.outcome.changes.unwrap();
    assert_eq!((changes.add, changes.change, changes.destroy), (1, 0, 0));
    let apply = Job {
        stage: Stage::Apply.into(),
        keep_workspace: false,
        restore_workspace: true,
        source: SourceKind::None.into(),
        ..plan
    };
    for sensitive_outputs in [false, true] {
        let mut second = Bench::new(Job { sensitive_outputs, ..apply.clone() })
            .environment("HOME", home.path())
            .download(Download::Workspace, first.uploaded(Upload::Workspace).unwrap());
        let done = second.done().await;
        assert_eq!(done.outcome.result(), Ended::Finished, "{}", done.transcript());
        assert!(done.text().contains("1 added"), "{}", done.text());
        let outputs = second.uploaded(Upload::Outputs).unwrap();
        let outputs: serde_json::Value = serde_json::from_slice(&outputs).unwrap();
        assert_eq!(outputs["plain"]["value"], "01J0000000000000000000000A");
        assert_eq!(outputs.get("hidden").is_some(), sensitive_outputs);
    }
}
