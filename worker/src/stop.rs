//! Orders to stop: from the launcher, and as a signal.

use std::time::Duration;

use tokio::sync::watch;

use crate::protocol;

/// After SIGTERM to the worker itself: what `docker stop` leaves is 10 seconds, and the outcome has to be reported in it too.
pub const SIGNAL_GRACE: Duration = Duration::from_secs(10);
/// A launcher cannot ask for more: that would be a mistake in its arithmetic.
const MAXIMUM_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// Which one it is, from 1 on.
    pub serial: u64,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Why, in one line.
    pub reason: String,
}

/// Gives orders.
#[derive(Debug)]
pub struct Stopper {
    orders: watch::Sender<Order>,
    in_this_connection: u64,
}

impl Default for Stopper {
    fn default() -> Self {
        Self { orders: watch::Sender::new(Order::default()), in_this_connection: 0 }
    }
}

impl Stopper {
    /// Whoever takes the orders.
    pub fn stops(&self) -> Stops {
        Stops { orders: self.orders.subscribe(), seen: 0 }
    }

    /// Another giver of orders to the same taker.
    pub fn another(&self) -> Self {
        Self { orders: self.orders.clone(), in_this_connection: 0 }
    }

    /// A launcher repeats its order in a new connection, where it does not know whether it was heard.
    pub fn connected(&mut self) {
        self.in_this_connection = 0;
    }

    /// The launcher said it.
    pub fn launcher_said(&mut self, stop: &protocol::Stop) {
        self.in_this_connection += 1;
        if self.in_this_connection > self.orders.borrow().serial {
            self.order(Duration::from_millis(stop.grace).min(MAXIMUM_GRACE), stop.reason.clone());
        }
    }

    /// Gives an order.
    pub fn order(&self, grace: Duration, reason: String) {
        self.orders.send_modify(|order| *order = Order { serial: order.serial + 1, grace, reason });
    }
}

/// Takes orders. The first one ends the run, a later one ends what is done after it.
#[derive(Debug)]
pub struct Stops {
    orders: watch::Receiver<Order>,
    seen: u64,
}

impl Stops {
    /// Waits for the next order.
    pub async fn next(&mut self) -> Order {
        let seen = self.seen;
        match self.orders.wait_for(|order| order.serial > seen).await {
            Ok(order) => {
                self.seen = order.serial;
                order.clone()
            }
            // Nobody is left to give one.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes an order that has been given already.
    pub fn take(&mut self) -> Option<Order> {
        let order = self.orders.borrow().clone();
        (order.serial > self.seen).then(|| {
            self.seen = order.serial;
            order
        })
    }

    /// The order that has been taken, if any.
    pub fn taken(&self) -> Option<Order> {
        (self.seen > 0).then(|| self.orders.borrow().clone())
    }
}
