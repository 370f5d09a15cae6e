//! What the launcher and its control plane say to each other.
//!
//! Three ways lead from one to the other, and each has a module:
//!
//! - [`token`]: what a pool's administrator carries by hand: where the control plane is, and the pool's certificate.
//! - [`mqtt`]: scheduling, stopping, draining and liveness, as small JSON envelopes on two topics for each worker.
//! - [`api`]: everything else, as JSON over HTTPS: registration, claiming a run, its states, its outcome, and addresses of
//!   objects in S3. Requests are signed with the pool's private key: [`signature`].
//!
//! [`id`] has the identifiers, and [`key`] the pool's key with what is done with it.
//!
//! Rules for all of them: a newer peer may send fields that an older one does not know, and these are passed over. Whatever
//! else is not as described is refused with a reason. Every message has a limit.

pub mod api;
pub mod id;
pub mod key;
pub mod mqtt;
pub mod signature;
pub mod token;
