//! Jobs that do what no job should: each ends with the right outcome, and the launcher is as it was.

use std::time::{Duration, Instant};

use super::*;

/// Bytes of memory that a process had at most.
fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn whatever_a_job_does_its_run_ends_and_the_launcher_does_not() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let ends = |what: &str, command: &str, state: RunState| {
        let begun = Instant::now();
        let mut stack = world.stack("hostile");
        stack.hooks.after_run = vec!["echo after all".to_owned()];
        let run = world.control_plane.begin(&stack, RunType::Task, Some(command));
        world.control_plane.wait_within(run, state, Duration::from_secs(240));
        let log = world.control_plane.log(run);
        let end = String::from_utf8_lossy(&log[log.len().saturating_sub(500)..]);
        assert!(end.contains("after all\n"), "{what}: {end}");
        assert_eq!(world.containers(), Vec::<String>::new(), "{what}");
        (log, begun.elapsed())
    };
    let (log, took) = ends("a grandchild that keeps stdout", "sleep 600 & echo gone", RunState::Finished);
    assert!(String::from_utf8_lossy(&log).contains("gone\n") && took < Duration::from_secs(90), "{took:?}");
    ends("a closed stdout", "exec >&- 2>&-; sleep 1", RunState::Finished);
    ends("the end of all processes but its own", "sleep 100 & kill -9 -1; echo alive", RunState::Finished);
    ends("the end of its own shell", "echo before; kill -9 $$; sleep 5", RunState::Failed);
    ends("signals to PID 1 itself", "kill -9 1; kill -STOP 1; echo alive", RunState::Finished);
    let (log, _) =
        ends("a line of 100 MB", "head -c 100000000 /dev/zero | busybox tr '\\0' x; echo", RunState::Finished);
    let longest = log.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
    assert_eq!(longest, Some(100_000_000));
    drop(log);
    let (log, _) = ends("much output", "busybox yes 0123456789abcdef | head -c 170000000", RunState::Finished);
    assert_eq!(log.split(|byte| *byte == b'\n').filter(|line| *line == b"0123456789abcdef").count(), 10_000_000);
    let peak = peak_memory(launcher.id());
    assert!(peak < 64 * 1024 * 1024, "{peak} bytes of memory");
    assert_eq!(launcher.finish(), Some(0));
}
