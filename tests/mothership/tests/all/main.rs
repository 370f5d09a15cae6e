//! The control plane as a process of its own, with a real broker and a real object store.

mod bench;
mod crash;
mod pools;
mod refusals;
mod runs;
mod worker;
