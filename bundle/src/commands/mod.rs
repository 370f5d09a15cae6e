//! One file per command.

pub(crate) mod diff;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod install;
pub(crate) mod keygen;
pub(crate) mod manual;
pub(crate) mod notices;
pub(crate) mod pack;
pub(crate) mod policy;
pub(crate) mod provenance;
pub(crate) mod publish;
pub(crate) mod push;
pub(crate) mod release_config;
pub(crate) mod sbom;
pub(crate) mod sign;
pub(crate) mod uninstall;
pub(crate) mod verify;
pub(crate) mod version;
