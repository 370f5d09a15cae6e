//! How tasks tell the agent's loop what happened.

use launcher_wire::id::AssignmentId;
use tokio::sync::mpsc;

use crate::run::Event;

/// An event, and of which stage of which run it is.
pub type Message = (AssignmentId, Event);

/// For the tasks of one stage. What one of them says late, when the launcher has another run, is told apart.
#[derive(Debug, Clone)]
pub struct Sender {
    assignment: AssignmentId,
    loop_: mpsc::Sender<Message>,
}

impl Sender {
    /// For this stage.
    #[must_use]
    pub fn new(loop_: mpsc::Sender<Message>, assignment: AssignmentId) -> Self {
        Self { assignment, loop_ }
    }

    /// Waits until there is room. A loop that has ended hears nothing, and needs to hear nothing.
    pub async fn send(&self, event: Event) {
        let _ = self.loop_.send((self.assignment, event)).await;
    }

    /// Says it if there is room.
    pub fn try_send(&self, event: Event) {
        let _ = self.loop_.try_send((self.assignment, event));
    }
}
