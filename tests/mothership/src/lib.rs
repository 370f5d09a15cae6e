//! The reference control plane.
