//! Runs under faults, and what became of each of them: component × moment × fault.
//!
//! A job counts its lines, says a secret in each of them, and leaves a mark outside its container when it starts and when it is
//! about to end. So it shows afterwards whether a stage was started twice, whether a line is missing or there twice, whether the
//! secret is anywhere, and whether anything was left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use launcher_wire::api::{Outcome, RunState, RunType, Variable, Workflow};
use launcher_wire::id::{RunId, WorkerId};
use mothership::admin::{Run, Stack, WorkerStatus};
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, Killed, Launcher, Pool, custom_stack, runner_image};
use crate::docker::{self, Engine};
use crate::run::{finish, succeed};

/// Said by every line of a job.
const SECRET: &str = "tr0ub4dor-and-3-staples";
/// Lines of a stage.
const LINES: usize = 40;
/// How long anything may take to come about once the fault is over.
const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(50);

/// What a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The launcher that has the run.
    Launcher,
    /// The MQTT broker.
    Broker,
    /// The control plane.
    ControlPlane,
    /// The object store.
    Store,
    /// The Docker engine. Containers live on without it.
    Engine,
    /// The container of the run.
    Container,
    /// The image of the run, which is on the host alone.
    Image,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Launcher, Self::Broker, Self::ControlPlane, Self::Store, Self::Engine, Self::Container, Self::Image];
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ends without a chance to do anything, and is started again later. A container: its processes are killed. An image: it is
    /// removed, and comes back later.
    Crash,
    /// It does nothing for a while, and its connections stay open. A container: it is removed with force.
    Stall,
    /// An engine: it ends in order, and its containers with it, and is started again later.
    Restart,
    /// A container: its memory runs out.
    Starve,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Crash, Self::Stall, Self::Restart, Self::Starve];

    /// Whether this can happen to a part, at a moment.
    #[must_use]
    pub fn can_strike(self, part: Part, moment: Moment) -> bool {
        match (part, self) {
            (Part::Container, Self::Restart) | (Part::Image, Self::Stall | Self::Restart | Self::Starve) => false,
            (Part::Container, _) => matches!(moment, Moment::Planning | Moment::Applying),
            // One that a container is made of stays.
            (Part::Image, Self::Crash) => matches!(moment, Moment::Begun(_) | Moment::PlanEnding),
            (Part::Engine, Self::Restart) | (_, Self::Crash | Self::Stall) => true,
            (_, Self::Restart | Self::Starve) => false,
        }
    }
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long after the run was asked for, when it is scheduled, claimed or prepared.
    Begun(Duration),
    /// While the plan logs.
    Planning,
    /// When the plan has said its last line: its workspace and its log are on their way.
    PlanEnding,
    /// While the apply logs, in its second container.
    Applying,
    /// When the apply has said its last line.
    ApplyEnding,
}

/// One try.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What is struck.
    pub part: Part,
    /// How.
    pub fault: Fault,
    /// When.
    pub moment: Moment,
    /// For how long.
    pub duration: Duration,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, fault, moment, duration } = self;
        let (fault, part) = match (fault, part) {
            (Fault::Crash, Part::Container) => ("kill", part),
            (Fault::Stall, Part::Container) | (Fault::Crash, Part::Image) => ("removal", part),
            (Fault::Crash, _) => ("crash", part),
            (Fault::Stall, _) => ("stall", part),
            (Fault::Restart, _) => ("restart", part),
            (Fault::Starve, _) => ("starvation", part),
        };
        let what = format!("{part:?} {fault}");
        let when = match moment {
            Moment::Begun(after) => format!("{:.1} s after the request", after.as_secs_f32()),
            moment => format!("{moment:?}"),
        };
        write!(f, "{what:20} {when:24} {:4.1} s", duration.as_secs_f32())
    }
}

/// What became of all runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs.
    pub runs: usize,
    /// Stages of which a container was started.
    pub starts: usize,
    /// Stages of which more than one was.
    pub double_starts: usize,
    /// Lines that reached the store.
    pub lines: usize,
    /// Lines that a job said and that are not there.
    pub lost_lines: usize,
    /// Lines that are there more than once, or not in their place.
    pub doubled_lines: usize,
    /// Runs that ended otherwise than the fault explains.
    pub wrong_outcomes: usize,
    /// Containers that were left behind.
    pub orphans: usize,
    /// Files and logs with the secret in them.
    pub secrets: usize,
    /// Of the runs, those that ended well.
    pub finished: usize,
}

impl Counts {
    /// Whether nothing went wrong that may not go wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let Self { double_starts, lost_lines, doubled_lines, wrong_outcomes, orphans, secrets, .. } = *self;
        [double_starts, lost_lines, doubled_lines, wrong_outcomes, orphans, secrets] == [0; 6]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, starts, double_starts, lines, lost_lines, doubled_lines, .. } = self;
        let Self { wrong_outcomes, orphans, secrets, finished, .. } = self;
        write!(
            f,
            "runs {runs} ({finished} finished, the others ended by the fault), containers started {starts}, double starts \
             {double_starts}, lines {lines}, lost {lost_lines}, doubled {doubled_lines}, wrong outcomes {wrong_outcomes}, \
             orphans {orphans}, secrets found {secrets}"
        )
    }
}

/// A pool of launchers with everything that they need, each part of which can be struck.
pub struct Site {
    control_plane: ControlPlane,
    engine: Engine,
    pool: Pool,
    image: String,
    program: PathBuf,
    launchers: Vec<Option<Launcher>>,
    /// Where jobs leave their marks.
    marks: TempDir,
    counts: Counts,
    number: usize,
}

impl Site {
    /// Starts everything, with so many launchers.
    ///
    /// # Panics
    /// Some part does not start.
    pub fn start(mothership: &Path, strict_s3: &str, launcher: &Path, launchers: usize) -> Self {
        let marks = tempfile::Builder::new().prefix("marks").tempdir_in("/tmp").unwrap();
        fs::set_permissions(marks.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let engine = Engine::start_with(docker::LIVE_RESTORE, &[]);
        let control_plane = ControlPlane::start(mothership, strict_s3);
        let (image, pool) = (runner_image(&engine), control_plane.pool());
        let mounts = format!("{}:/mnt/marks", marks.path().display());
        succeed(engine.docker().args(["save", "--output"]).arg(saved_image(&engine)).arg("runner"));
        let variables = [("SPACELIFT_WORKER_EXTRA_MOUNTS", mounts.as_str()), ("SPACELIFT_WORKER_MEMORY", "128m")];
        let start = || Some(Launcher::start(launcher, &engine, &pool, &variables));
        let launchers: Vec<_> = (0..launchers).map(|_| start()).collect();
        abandon(&place_of_another(&launchers[0].as_ref().expect("it was started").directory(), &pool));
        control_plane.wait_for_worker(None, WorkerStatus::Idle);
        let (counts, number, program) = (Counts::default(), 0, launcher.to_owned());
        Self { control_plane, engine, pool, image, program, launchers, marks, counts, number }
    }

    /// What became of all runs so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A run in the middle of which a fault strikes. Gives what was wrong, a sentence each.
    ///
    /// # Panics
    /// A part does not come back.
    pub fn try_case(&mut self, case: &Case) -> Vec<String> {
        self.number += 1;
        let number = self.number;
        let run = self.control_plane.begin(&self.stack(number), RunType::Tracked, None);
        let struck = self.wait_for_moment(case.moment, number).and_then(|()| self.strike(case, run));
        let (ended, mut wrong) = match struck {
            Ok(()) => (self.wait_for_end(run), vec![]),
            Err(reason) => (self.wait_for_end(run), vec![reason]),
        };
        let Ok(ended) = ended else {
            self.counts.runs += 1;
            self.counts.wrong_outcomes += 1;
            return vec![format!("the run does not end: {}", self.what_was_said())];
        };
        self.account(case, number, &ended, &mut wrong);
        wrong
    }

    /// Ends the launchers and looks for what nobody may find: the secret. Gives what was wrong.
    ///
    /// # Panics
    /// A launcher does not end.
    pub fn finish(&mut self) -> Vec<String> {
        let mut wrong = vec![];
        // Meanwhile one of them has looked after what another left on its host, or does so soon.
        let left = self.launchers[0].as_ref().map(|launcher| place_of_another(&launcher.directory(), &self.pool));
        let begun = Instant::now();
        while left.as_ref().is_some_and(|place| place.join("run").exists()) && begun.elapsed() < LIMIT {
            thread::sleep(POLL);
        }
        if left.is_some_and(|place| place.join("run").exists()) {
            wrong.push("what a launcher left that does not come back is still there".to_owned());
        }
        let mut places = vec![self.control_plane.store.state(), self.control_plane.broker.directory().to_owned()];
        let mut hosts = vec![];
        for launcher in self.launchers.drain(..).flatten() {
            let (host, code) = launcher.finish_with_host();
            if code != Some(0) {
                wrong.push(format!("a launcher ended with {code:?}"));
            }
            places.push(host.path().to_owned());
            hosts.push(host);
        }
        for place in places {
            for file in files_with(&place, SECRET.as_bytes()) {
                self.counts.secrets += 1;
                wrong.push(format!("the secret is in {}", file.display()));
            }
        }
        for (name, log) in [("control plane", self.control_plane.own_log()), ("engine", self.engine.dockerd.log())] {
            if log.contains(SECRET) {
                self.counts.secrets += 1;
                wrong.push(format!("the secret is in the log of the {name}"));
            }
        }
        wrong
    }

    fn stack(&self, number: usize) -> Stack {
        let script = |stage: &str| {
            format!(
                "echo started >> /mnt/marks/{number}.{stage}.starts; i=0; while [ $i -lt {LINES} ]; do \
                 echo \"{stage} line $i $PASSWORD\"; i=$((i + 1)); sleep 0.05; \
                 if [ -e /mnt/marks/{number}.starve ]; then busybox tail /dev/zero; exit 1; fi; done; \
                 echo ended > /mnt/marks/{number}.{stage}.ends"
            )
        };
        let workflow = Workflow {
            init: Some("true".to_owned()),
            plan: Some(format!("{} && echo planned > kept", script("plan"))),
            apply: Some(format!("cat kept && {}", script("apply"))),
            destroy: None,
            output: None,
        };
        Stack {
            environment: vec![Variable { name: "PASSWORD".to_owned(), value: SECRET.to_owned(), secret: true }],
            autodeploy: true,
            ..custom_stack(&format!("faults-{number}"), self.pool.id, &self.image, workflow)
        }
    }

    fn mark(&self, number: usize, name: &str) -> PathBuf {
        self.marks.path().join(format!("{number}.{name}"))
    }

    fn wait_for_moment(&self, moment: Moment, number: usize) -> Result<(), String> {
        let (name, then) = match moment {
            Moment::Begun(after) => {
                thread::sleep(after);
                return Ok(());
            }
            Moment::Planning => ("plan.starts", Duration::from_millis(700)),
            Moment::PlanEnding => ("plan.ends", Duration::ZERO),
            Moment::Applying => ("apply.starts", Duration::from_millis(700)),
            Moment::ApplyEnding => ("apply.ends", Duration::ZERO),
        };
        let (mark, begun) = (self.mark(number, name), Instant::now());
        while !mark.exists() {
            if begun.elapsed() > LIMIT {
                return Err(format!("{moment:?} does not come: {}", self.what_was_said()));
            }
            thread::sleep(POLL);
        }
        thread::sleep(then);
        Ok(())
    }

    fn strike(&mut self, case: &Case, run: RunId) -> Result<(), String> {
        let wait = || thread::sleep(case.duration);
        match (case.part, case.fault) {
            (Part::Launcher, fault @ (Fault::Crash | Fault::Stall)) => {
                let index = self.launcher_of(run);
                let launcher = self.launchers[index].take().expect("it runs");
                let launcher = if fault == Fault::Crash {
                    let killed: Killed = launcher.kill();
                    wait();
                    killed.start_again(&self.program)
                } else {
                    launcher.daemon().pause();
                    wait();
                    launcher.daemon().resume();
                    launcher
                };
                self.launchers[index] = Some(launcher);
            }
            (Part::Broker, Fault::Crash) => {
                self.control_plane.broker.kill();
                wait();
                self.control_plane.broker.restart();
            }
            (Part::ControlPlane, Fault::Crash) => {
                self.control_plane.mothership.daemon().kill();
                wait();
                self.control_plane.mothership.restart();
            }
            (Part::Store, Fault::Crash) => {
                self.control_plane.store.service.daemon().kill();
                wait();
                self.control_plane.store.service.restart();
            }
            (Part::Engine, Fault::Crash) => {
                self.engine.kill();
                wait();
                self.engine.restart();
            }
            (Part::Engine, Fault::Restart) => {
                self.engine.end();
                wait();
                self.engine.restart();
            }
            (Part::Container, Fault::Starve) => {
                // The job itself takes all there is. Its mount shows it the mark.
                let number = self.number;
                fs::write(self.mark(number, "starve"), "").unwrap();
            }
            (Part::Image, Fault::Crash) => {
                let begun = Instant::now();
                while finish(self.engine.docker().args(["rmi", "--force", &self.image])).code != Some(0) {
                    if begun.elapsed() > LIMIT {
                        return Err("the image cannot be removed".to_owned());
                    }
                    thread::sleep(POLL);
                }
                wait();
                succeed(self.engine.docker().args(["load", "--input"]).arg(saved_image(&self.engine)));
            }
            (part @ (Part::Broker | Part::ControlPlane | Part::Store | Part::Engine), Fault::Stall) => {
                let daemon = match part {
                    Part::Broker => self.control_plane.broker.daemon(),
                    Part::ControlPlane => self.control_plane.mothership.daemon(),
                    Part::Store => self.control_plane.store.service.daemon(),
                    _ => self.engine.dockerd.daemon(),
                };
                daemon.pause();
                wait();
                daemon.resume();
            }
            (Part::Container, fault @ (Fault::Crash | Fault::Stall)) => {
                let containers = self.containers();
                let Some(container) = containers.first() else { return Err("there is no container".to_owned()) };
                let verb = if fault == Fault::Crash { &["kill"][..] } else { &["rm", "--force"][..] };
                finish(self.engine.docker().args(verb).arg(container));
            }
            (part, fault) => return Err(format!("{fault:?} cannot strike {part:?}")),
        }
        Ok(())
    }

    /// The launcher that has a run, or the first one.
    fn launcher_of(&self, run: RunId) -> usize {
        let Ok(Run { worker: Some(worker), .. }) = self.control_plane.client.run(run) else { return 0 };
        let has_it = |launcher: &Option<Launcher>| {
            launcher.as_ref().is_some_and(|launcher| launcher.log().contains(&worker.to_string()))
        };
        self.launchers.iter().position(has_it).unwrap_or(0)
    }

    fn wait_for_end(&self, run: RunId) -> Result<Run, ()> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            // It may just have come back.
            if let Ok(present) = self.control_plane.client.run(run)
                && present.state.is_terminal()
            {
                return Ok(present);
            }
            thread::sleep(POLL);
        }
        Err(())
    }

    fn account(&mut self, case: &Case, number: usize, ended: &Run, wrong: &mut Vec<String>) {
        self.counts.runs += 1;
        let is_finished = ended.state == RunState::Finished;
        self.counts.finished += usize::from(is_finished);
        if !is_finished && !explains(case, ended) {
            self.counts.wrong_outcomes += 1;
            let report = ended.stages.last().and_then(|stage| stage.report.as_ref());
            let outcome = report.map(|report| (report.outcome, &report.message));
            wrong.push(format!("it ended as {:?}: {outcome:?}, {}", ended.state, ended.message));
        }
        let log = String::from_utf8_lossy(&self.control_plane.log(ended.id)).into_owned();
        if log.contains(SECRET) {
            self.counts.secrets += 1;
            wrong.push("the secret is in the run's log".to_owned());
        }
        let before = self.counts.clone();
        for stage in ["plan", "apply"] {
            let marks = fs::read_to_string(self.mark(number, &format!("{stage}.starts"))).unwrap_or_default();
            let starts = marks.lines().count();
            self.counts.starts += starts;
            if starts > 1 {
                self.counts.double_starts += 1;
                wrong.push(format!("its {stage} was started {starts} times"));
            }
            let mut seen = BTreeMap::new();
            let prefix = format!("{stage} line ");
            let mut next = 0;
            for line in log.lines().filter_map(|line| line.strip_prefix(&prefix)) {
                let number = line.split(' ').next().and_then(|number| number.parse::<usize>().ok());
                let is_whole = line.ends_with(" ***");
                match number {
                    Some(number) if is_whole && number >= next => {
                        seen.insert(number, ());
                        next = number + 1;
                    }
                    _ => self.counts.doubled_lines += 1,
                }
            }
            self.counts.lines += seen.len();
            // A job that said its last line said all of them. Of one that was cut off, nothing before its last line may lack.
            let said_all = self.mark(number, &format!("{stage}.ends")).exists() && case.part != Part::Container;
            let said = if is_finished || said_all { LINES } else { next };
            self.counts.lost_lines += said.saturating_sub(seen.len());
        }
        let lost = self.counts.lost_lines - before.lost_lines;
        let doubled = self.counts.doubled_lines - before.doubled_lines;
        if lost + doubled > 0 {
            wrong.push(format!("of its log, {lost} lines are missing and {doubled} are there twice:\n{log}"));
        }
        // It is told of an end only when its container is gone.
        for container in self.containers() {
            self.counts.orphans += 1;
            wrong.push(format!("a container was left behind: {container}"));
            succeed(self.engine.docker().args(["rm", "--force", &container]));
        }
    }

    fn containers(&self) -> Vec<String> {
        let mut docker = self.engine.docker();
        docker.args(["ps", "--all", "--quiet", "--no-trunc", "--filter", "label=io.spacelift.run"]);
        succeed(&mut docker).lines().map(str::to_owned).collect()
    }

    fn what_was_said(&self) -> String {
        let logs = self.launchers.iter().flatten().map(Launcher::log);
        format!("{}\n{}", logs.collect::<Vec<_>>().join("\n"), self.control_plane.own_log())
    }
}

/// Where a second launcher of the same host would be.
fn place_of_another(directory: &Path, pool: &Pool) -> PathBuf {
    directory.join("pools").join(pool.id.to_string()).join("1")
}

/// Makes a place look as after a launcher that does not come back, with files of a run that has ended.
fn abandon(place: &Path) {
    fs::create_dir_all(place.join("run/workspace")).unwrap();
    fs::write(place.join("worker"), format!("{}\n", WorkerId::new())).unwrap();
    fs::write(place.join("lock"), "").unwrap();
}

/// What the image is restored from.
fn saved_image(engine: &Engine) -> PathBuf {
    engine.path().join("saved.tar")
}

/// Whether a run may have ended otherwise than well after this.
fn explains(case: &Case, ended: &Run) -> bool {
    let Some(report) = ended.stages.last().and_then(|stage| stage.report.as_ref()) else { return false };
    match (case.part, report.outcome) {
        // Whether the container had been created cannot be known, so it is not tried again.
        (Part::Launcher, Outcome::LauncherLost | Outcome::Unable) => {
            matches!(case.moment, Moment::Begun(_)) && case.fault == Fault::Crash
        }
        (Part::Engine, Outcome::Unable) => matches!(case.moment, Moment::Begun(_)),
        (Part::Engine, Outcome::ContainerLost) => {
            case.fault == Fault::Restart && report.message.contains("live-restore")
        }
        (Part::Container, Outcome::OutOfMemory) => {
            case.fault == Fault::Starve && report.message.contains("SPACELIFT_WORKER_MEMORY")
        }
        (Part::Container, Outcome::ContainerLost) => case.fault != Fault::Starve,
        (Part::Image, Outcome::Unable) => report.message.contains("image"),
        _ => false,
    }
}

/// The regular files below a directory that hold these bytes. What disappears meanwhile does not count.
fn files_with(directory: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file()
            && fs::read(&path).is_ok_and(|contents| contents.windows(bytes.len()).any(|window| window == bytes))
        {
            found.push(path);
        }
    }
    found
}
