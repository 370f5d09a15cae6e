//! When a chunk of the log goes to the object store.
//!
//! People watch: the first lines are to be there at once, and so are those after a silence. A log that goes on and on is to be
//! as few objects as may be. So each chunk waits for some part of the interval after the chunk before it, and that part doubles
//! from chunk to chunk until it is all of it. Every interval that passes takes one doubling back. Of a log there are then never
//! more chunks than one for each interval and [`BURST`], besides those that are full.

use std::time::Duration;

use tokio::time::Instant;

/// How often the wait is halved at first. Of two seconds that is eight milliseconds, less than a person sees.
const BURST: u32 = 8;
/// How long a chunk stays open for what comes together with its first line: what a program says in one go takes no longer.
const TOGETHER: Duration = Duration::from_millis(2);

/// The chunks of a log, as far as their times go.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the last one was sealed. None: none was.
    last: Option<Instant>,
    /// Halvings that are left.
    left: u32,
    /// Up to when intervals have been counted.
    counted: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: None, left: BURST, counted: now }
    }

    /// When a chunk is to be sealed that got its first line now.
    #[must_use]
    pub(super) fn due(&self, now: Instant, interval: Duration) -> Instant {
        let earliest = now + TOGETHER;
        self.last.map_or(earliest, |last| earliest.max(last + interval / 2_u32.pow(self.left)))
    }

    /// A chunk was sealed, or could not be: an attempt that fails is not to be repeated at once.
    pub(super) fn sealed(&mut self, now: Instant, interval: Duration) {
        let passed = (now - self.counted).as_millis() / interval.as_millis().max(1);
        let earned = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST - self.left);
        // Once there are all of them, time does not count any more.
        self.counted = if self.left + earned == BURST { now } else { self.counted + interval * earned };
        self.left = (self.left + earned).saturating_sub(1);
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// The moments at which chunks are sealed, of a log with lines at these moments, in milliseconds.
    fn sealed(lines: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let begin = Instant::now();
        let at = |line: u64| begin + Duration::from_millis(line);
        let (mut pace, mut due, mut sealed) = (Pace::new(begin), None::<Instant>, vec![]);
        for moment in lines.into_iter().map(at).chain([at(u64::from(u32::MAX))]) {
            if let Some(seal) = due.take_if(|due| *due <= moment) {
                pace.sealed(seal, INTERVAL);
                sealed.push(u64::try_from((seal - begin).as_millis()).unwrap());
            }
            due.get_or_insert_with(|| pace.due(moment, INTERVAL));
        }
        sealed
    }

    #[test]
    fn the_first_line_goes_at_once() {
        assert_eq!(sealed([0]), [2]);
        assert_eq!(sealed([500]), [502]);
    }

    #[test]
    fn what_comes_together_is_one_chunk() {
        assert_eq!(sealed([0, 1, 1]), [2]);
    }

    /// The launcher says that it begins; the container's first line comes a moment later, and then the job's.
    #[test]
    fn so_do_the_lines_of_a_beginning() {
        assert_eq!(sealed([0, 300, 340]), [2, 302, 342]);
    }

    #[test]
    fn a_steady_log_comes_to_one_chunk_in_each_interval() {
        let sealed = sealed((0..600_000).step_by(10));
        let (beginning, steady) = sealed.split_at(9);
        assert!(beginning.last().is_some_and(|last| *last < 5_000), "{beginning:?}");
        assert!(steady.windows(2).all(|pair| (2_000..=2_010).contains(&(pair[1] - pair[0]))), "{steady:?}");
        assert!(sealed.len() <= 300 + BURST as usize, "{} chunks in 300 intervals", sealed.len());
    }

    /// Whatever a job does, and however it pauses to get more of them.
    #[test]
    fn there_are_never_more_than_one_for_each_interval_and_a_few() {
        for (lines, silence) in [(1, 100), (1, 1_000), (1, 1_990), (20, 3_000), (300, 2_500), (3_000, 10_000)] {
            let period = lines + silence;
            let sealed = sealed((0..600_000).filter(|moment| moment % period < lines));
            let most = 300 + BURST as usize + 1;
            assert!(sealed.len() <= most, "{} chunks: {lines} lines and {silence} ms without", sealed.len());
        }
    }

    #[test]
    fn after_a_silence_a_line_goes_at_once_again() {
        let busy = (0..60_000).step_by(10);
        let sealed = sealed(busy.chain([65_000, 68_000, 71_000]));
        assert!(sealed.ends_with(&[65_002, 68_002, 71_002]), "{sealed:?}");
    }

    /// The next stage of a run, or whatever comes after people were asked.
    #[test]
    fn after_a_long_silence_there_is_another_beginning() {
        let busy = (0..60_000).step_by(10);
        let sealed = sealed(busy.chain([80_000, 80_300, 80_340]));
        assert!(sealed.ends_with(&[80_002, 80_302, 80_342]), "{sealed:?}");
    }

    /// A line every three seconds is a chunk of its own, and no more than that.
    #[test]
    fn a_slow_log_has_a_chunk_for_each_line() {
        let sealed = sealed((0..60_000).step_by(3_000));
        assert_eq!(sealed, (0..60_000).step_by(3_000).map(|line| line + 2).collect::<Vec<_>>());
    }

    /// A disk that is full is not asked again every few milliseconds.
    #[test]
    fn an_attempt_that_fails_is_repeated_after_ever_longer_waits() {
        let begin = Instant::now();
        let (mut pace, mut now, mut attempts) = (Pace::new(begin), begin, 0);
        while now < begin + Duration::from_secs(60) {
            now = pace.due(now, INTERVAL);
            pace.sealed(now, INTERVAL);
            attempts += 1;
        }
        assert!(attempts <= 30 + BURST + 1, "{attempts}");
    }
}
