# Completions of spacelift-launcher for fish. Put this file into ~/.config/fish/completions.

set -l commands check sweep extract-worker
complete -c spacelift-launcher -f
complete -c spacelift-launcher -n "not __fish_seen_subcommand_from $commands" -a check -d 'Try what a launcher needs'
complete -c spacelift-launcher -n "not __fish_seen_subcommand_from $commands" -a sweep -d 'Remove what launchers left behind'
complete -c spacelift-launcher -n "not __fish_seen_subcommand_from $commands" -a extract-worker -d 'Write the worker out and print its path'
complete -c spacelift-launcher -n "not __fish_seen_subcommand_from $commands" -s V -l version -d 'Print the version of the launcher and of its worker'
complete -c spacelift-launcher -n '__fish_contains_opt -s V version' -l json -d 'Print the build note'
complete -c spacelift-launcher -n '__fish_seen_subcommand_from sweep' -l dry-run -d 'Only say what would be removed'
complete -c spacelift-launcher -n '__fish_seen_subcommand_from extract-worker' -l dir -r -a '(__fish_complete_directories)' -d 'Where to write the worker'
complete -c spacelift-launcher -s h -l help -d 'Print a short help'
