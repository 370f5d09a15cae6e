//! `spacelift-launcher sweep`: what launchers of this host and pool left behind that do not come back, to be looked at or removed.
//!
//! The same that a launcher removes at its start and now and then: containers, and files of runs that have ended. What a launcher
//! is at work with is not touched, nor what the next one goes on with. While a place is swept no launcher takes it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use launcher_wire::id::{RunId, WorkerId};

use crate::agent::{LABEL_POOL, LABEL_RUN, LABEL_WORKER};
use crate::config::Config;
use crate::docker::{self, Engine};
use crate::slot::{self, Left};

/// Whether anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Yes.
    Remove,
    /// No, it is only said what would be.
    Look,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A container, of a run if it says so.
    Container {
        /// Its name.
        name: String,
        /// The run that its label names.
        run: Option<String>,
    },
    /// Files of a run that has ended.
    Files(PathBuf),
    /// The place of a launcher.
    Place(PathBuf),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { name, run: Some(run) } => write!(f, "container {name} of run {run}"),
            Self::Container { name, run: None } => write!(f, "container {name}"),
            Self::Files(path) => write!(f, "files in {}", path.display()),
            Self::Place(path) => write!(f, "place {}", path.display()),
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Removed,
    /// It would be.
    WouldBeRemoved,
    /// It stays, and why.
    Kept(String),
    /// It could not be removed or looked at, and why.
    Failed(String),
}

/// One thing, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub what: What,
    /// What became of it.
    pub fate: Fate,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, fate } = self;
        match fate {
            Fate::Removed => write!(f, "removed       {what}"),
            Fate::WouldBeRemoved => write!(f, "would remove  {what}"),
            Fate::Kept(reason) => write!(f, "kept          {what}: {reason}"),
            Fate::Failed(reason) => write!(f, "FAILED        {what}: {reason}"),
        }
    }
}

/// Whom a place belongs to.
enum Owner {
    /// Nobody any more.
    Gone,
    /// Whoever is started next.
    Next(RunId),
}

/// Looks at everything of this pool on this host.
///
/// # Errors
/// There is no Docker engine, or it does not answer.
pub async fn run(config: &Config, mode: Mode) -> Result<Vec<Finding>, docker::Error> {
    let engine = Engine::connect(config.docker_host.as_deref()).await?;
    let mut findings = vec![];
    let mut owners = HashMap::new();
    // These stay locked until the end. A place with a run is free again at once: the launcher that is to go on with the run may be
    // starting now, and would take another place, with nobody to end the run.
    let mut gone = vec![];
    for (path, left) in slot::places(&config.directory, config.token.pool) {
        let fate = match left {
            Ok(Some(Left { worker, begun: Some(entry), .. })) => {
                owners.insert(worker, Owner::Next(entry.run));
                let advice = "start a launcher of this pool on this host, which goes on with it";
                Fate::Kept(format!("run {} was begun here and has not ended; {advice}", entry.run))
            }
            Ok(Some(left)) => {
                owners.insert(left.worker, Owner::Gone);
                gone.push(left);
                continue;
            }
            Ok(None) => Fate::Kept("a launcher is at work here".to_owned()),
            Err(error) => Fate::Failed(error.to_string()),
        };
        findings.push(Finding { what: What::Place(path), fate });
    }
    // A container first: it may still write to the files, and keeps them as long as it is there.
    let mut kept = HashSet::new();
    for (name, labels) in engine.names_and_labels(LABEL_WORKER).await? {
        let is_of_pool = labels.get(LABEL_POOL).is_some_and(|pool| *pool == config.token.pool.to_string());
        let worker = labels.get(LABEL_WORKER).and_then(|worker| worker.parse::<WorkerId>().ok());
        let fate = match worker.and_then(|worker| owners.get(&worker)) {
            Some(Owner::Gone) => match mode {
                Mode::Look => Fate::WouldBeRemoved,
                Mode::Remove => fate(engine.remove(&name).await),
            },
            Some(Owner::Next(run)) => Fate::Kept(format!("its launcher was at run {run}, and comes back for it")),
            None if is_of_pool => Fate::Kept(format!(
                "its launcher is at work, or keeps its files elsewhere than in {}",
                config.directory.display()
            )),
            // Another pool has launchers of its own.
            None => continue,
        };
        if let (Some(worker), Fate::Failed(_)) = (worker, &fate) {
            kept.insert(worker);
        }
        let run = labels.get(LABEL_RUN).cloned();
        findings.push(Finding { what: What::Container { name, run }, fate });
    }
    for left in gone {
        for path in &left.files {
            let fate = match mode {
                _ if kept.contains(&left.worker) => {
                    Fate::Kept("a container that could not be removed may write to them".to_owned())
                }
                Mode::Look => Fate::WouldBeRemoved,
                Mode::Remove => {
                    let path = path.clone();
                    match tokio::task::spawn_blocking(move || slot::remove_files(&path)).await {
                        Ok(removed) => fate(removed),
                        Err(error) => Fate::Failed(error.to_string()),
                    }
                }
            };
            findings.push(Finding { what: What::Files(path.clone()), fate });
        }
    }
    Ok(findings)
}

fn fate<E: fmt::Display>(removed: Result<(), E>) -> Fate {
    match removed {
        Ok(()) => Fate::Removed,
        Err(error) => Fate::Failed(error.to_string()),
    }
}
