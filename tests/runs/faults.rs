//! What a run's users were promised, when something around it fails.

use std::path::Path;
use std::time::Duration;

use integration_tests::faults::{Case, Fault, Moment, Part, Site};
use integration_tests::instance_metadata::InstanceMetadata;

use super::*;

/// The short form of `cargo xtask soak`: every part, at the moments that differ for it.
#[test]
fn promises_hold_whatever_fails() {
    const BRIEF: Duration = Duration::from_secs(3);
    let begun = |milliseconds| Moment::Begun(Duration::from_millis(milliseconds));
    let cases = [
        (Part::Launcher, Fault::Crash, begun(150)),
        (Part::Launcher, Fault::Crash, begun(500)),
        (Part::Launcher, Fault::Crash, Moment::Planning),
        (Part::Launcher, Fault::Crash, Moment::PlanEnding),
        (Part::Launcher, Fault::Crash, Moment::ApplyEnding),
        (Part::Launcher, Fault::Stall, Moment::Planning),
        (Part::Broker, Fault::Crash, begun(50)),
        (Part::Broker, Fault::Crash, Moment::PlanEnding),
        (Part::Broker, Fault::Stall, Moment::Planning),
        (Part::ControlPlane, Fault::Crash, begun(200)),
        (Part::ControlPlane, Fault::Crash, Moment::PlanEnding),
        (Part::ControlPlane, Fault::Crash, Moment::ApplyEnding),
        (Part::ControlPlane, Fault::Stall, begun(50)),
        (Part::Store, Fault::Crash, Moment::Planning),
        (Part::Store, Fault::Crash, Moment::PlanEnding),
        (Part::Store, Fault::Stall, Moment::ApplyEnding),
        (Part::Engine, Fault::Crash, begun(400)),
        (Part::Engine, Fault::Crash, Moment::Planning),
        (Part::Engine, Fault::Crash, Moment::ApplyEnding),
        (Part::Engine, Fault::Stall, Moment::PlanEnding),
        (Part::Container, Fault::Crash, Moment::Planning),
        (Part::Container, Fault::Stall, Moment::Applying),
        (Part::Container, Fault::Starve, Moment::Planning),
        (Part::Engine, Fault::Restart, Moment::Planning),
        (Part::Image, Fault::Crash, Moment::PlanEnding),
    ];
    let mut site = Site::start(program::mothership(), env!("CARGO_BIN_EXE_strict-s3"), &launcher_program(), 2);
    let mut wrong = vec![];
    for (part, fault, moment) in cases {
        let case = Case { part, fault, moment, duration: BRIEF };
        wrong.extend(site.try_case(&case).into_iter().map(|what| format!("{case}: {what}")));
    }
    wrong.extend(site.finish());
    assert!(wrong.is_empty() && site.counts().is_clean(), "{}\n{}", site.counts(), wrong.join("\n"));
    assert_eq!(site.counts().runs, cases.len());
    // Otherwise the faults ended what they should not have touched.
    assert!(site.counts().finished >= cases.len() - 9, "{}", site.counts());
}

#[test]
fn a_spot_notice_ends_the_run_in_time_and_the_launcher_with_it() {
    let world = World::new();
    let service = InstanceMetadata::start(&[("instance-life-cycle", "spot")]);
    let endpoint = service.endpoint();
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()), ("AWS_EC2_METADATA_DISABLED", "false")];
    let launcher = world.launcher(&variables);
    let mut stack = world.stack("spot");
    stack.hooks.after_run = vec!["echo after all".to_owned()];
    let job = "trap 'echo asked to end; exit 3' TERM; while true; do echo alive; sleep 1; done";
    let run = world.control_plane.begin(&stack, RunType::Task, Some(job));
    world.control_plane.wait_for(run, RunState::Performing);
    let soon = succeed(run::tool("date").args(["--utc", "--date", "+2 min", "+%Y-%m-%dT%H:%M:%SZ"]));
    let action = format!(r#"{{"action": "terminate", "time": "{}"}}"#, soon.trim());
    service.answer(&[("instance-life-cycle", "spot"), ("spot/instance-action", &action)]);
    let ended = world.control_plane.wait_for(run, RunState::Failed);
    let report = ended.stages.last().unwrap().report.clone().unwrap();
    assert_eq!(report.outcome, Outcome::SpotInterruption, "{report:?}");
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("asked to end\n") && log.contains("after all\n"), "{log}");
    assert!(log.contains("the worker's host is being taken away"), "{log}");
    assert_eq!(launcher.wait(), Some(0), "it ends by itself");
    assert_eq!(world.containers(), Vec::<String>::new());

    // One that is idle ends at once, and elsewhere nobody asks twice.
    assert_eq!(world.launcher(&variables).wait(), Some(0));
    service.answer(&[("instance-life-cycle", "on-demand"), ("spot/instance-action", &action)]);
    let before = service.log().matches("spot/instance-action").count();
    let launcher = world.launcher(&variables);
    let run = world.control_plane.begin(&world.stack("on-demand"), RunType::Task, Some("echo fine; sleep 7"));
    world.control_plane.wait_for(run, RunState::Finished);
    assert_eq!(service.log().matches("spot/instance-action").count(), before);
    assert_eq!(launcher.finish(), Some(0));
}

/// A directory for launchers with little room. It is gone when this is dropped.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Has to be there before the engine starts, which has mounts of its own from then on.
    pub(super) fn new(size: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("small").tempdir_in("/tmp").unwrap();
        let options = format!("size={size},mode=0755");
        succeed(run::tool("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()));
        Self(directory)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run::tool("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_a_job_fills_for_a_while_costs_no_line() {
    let disk = SmallDisk::new("40m");
    let world = World::new();
    let directory = disk.path().join("spacelift");
    let launcher = world.launcher(&[("SPACELIFT_LAUNCHER_DIR", directory.to_str().unwrap())]);
    let job = "echo before; cat /dev/zero > /mnt/workspace/fill; echo filled; i=0; \
               while [ $i -lt 2000 ]; do echo \"line $i, and some more of it so that it takes room\"; i=$((i + 1)); done; \
               sleep 10; rm /mnt/workspace/fill; echo after";
    let run = world.control_plane.begin(&world.stack("full"), RunType::Task, Some(job));
    world.control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    let lines = log.lines().filter(|line| line.starts_with("line ")).count();
    assert!(lines == 2000 && log.contains("before\n") && log.contains("after\n"), "{lines}: {log}");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_disk_that_a_job_fills_for_good_ends_the_run_and_not_the_launcher() {
    let disk = SmallDisk::new("40m");
    let world = World::new();
    let directory = disk.path().join("spacelift");
    let launcher = world.launcher(&[("SPACELIFT_LAUNCHER_DIR", directory.to_str().unwrap())]);
    // Much at a time: what is delivered frees a little, in which a few words would find room for ever.
    let job = "echo before; cat /dev/zero > /mnt/workspace/fill; \
               while true; do head -c 40000 /dev/zero | busybox tr '\\0' x; echo; sleep 0.1; done";
    let run = world.control_plane.begin(&world.stack("full"), RunType::Task, Some(job));
    let ended = world.control_plane.wait_within(run, RunState::Failed, Duration::from_secs(300));
    let report = ended.stages.last().unwrap().report.clone().unwrap();
    assert!(report.outcome == Outcome::Unable && report.message.contains("disk"), "{report:?}");
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("before\n"), "{log}");
    assert_eq!(world.containers(), Vec::<String>::new());
    let next = world.control_plane.begin(&world.stack("next"), RunType::Task, Some("echo next"));
    world.control_plane.wait_for(next, RunState::Finished);
    assert_eq!(launcher.finish(), Some(0));
}
