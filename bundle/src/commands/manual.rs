//! `manual` and `completions`: what helps with the command line, made from it.

use std::fs;
use std::io;
use std::path::PathBuf;

use bundle_core::output::OutputFile;
use clap::Command;
use clap_complete::Shell;

/// Write the manual's pages, one for each command, and completions for shells. They are part of every release, in man/ and
/// completions/.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle manual --output-dir stage")]
pub(crate) struct Arguments {
    /// The directory that gets man/man1 and completions.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) output_dir: PathBuf,
}

/// Print completions for a shell: `source <(spacelift-bundle completions bash)`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  source <(spacelift-bundle completions bash)
  spacelift-bundle completions zsh > ~/.zfunc/_spacelift-bundle
  spacelift-bundle completions fish > ~/.config/fish/completions/spacelift-bundle.fish")]
pub(crate) struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

const NAME: &str = env!("CARGO_PKG_NAME");
/// The shells whose completions a release has.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "spacelift-bundle"), (Shell::Zsh, "_spacelift-bundle"), (Shell::Fish, "spacelift-bundle.fish")];

/// # Errors
/// A file cannot be written.
pub(crate) fn run(arguments: &Arguments, command: Command) -> io::Result<()> {
    let pages = arguments.output_dir.join("man/man1");
    let completions = arguments.output_dir.join("completions");
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    let whole = page(command.clone(), NAME)?;
    OutputFile::write(&pages.join(format!("{NAME}.1")), &whole)?;
    let everywhere: Vec<_> = command.get_arguments().filter(|argument| argument.is_global_set()).cloned().collect();
    for part in command.get_subcommands() {
        let name = format!("{NAME}-{}", part.get_name());
        let part = part.clone().args(&everywhere);
        OutputFile::write(&pages.join(format!("{name}.1")), &page(part, &name)?)?;
    }
    for (shell, file) in SHELLS {
        OutputFile::write(&completions.join(file), &script(shell, command.clone()))?;
    }
    Ok(())
}

/// # Errors
/// Standard output is closed.
pub(crate) fn print_completions(arguments: &Completions, command: Command) -> io::Result<()> {
    io::Write::write_all(&mut io::stdout().lock(), &script(arguments.shell, command))
}

fn script(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    script
}

/// One page. The version in it is the release's, without the commit that `--version` adds.
fn page(command: Command, name: &str) -> io::Result<Vec<u8>> {
    const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
    let mut command = command.display_name(name).bin_name(name.replacen(&format!("{NAME}-"), &format!("{NAME} "), 1));
    if name == NAME {
        command = command.version(VERSION);
    }
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(command).manual("Self-Hosted releases");
    manual.source(format!("{NAME} {VERSION}")).render(&mut page)?;
    Ok(page)
}
