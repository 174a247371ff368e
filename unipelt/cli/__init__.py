"""The command line. Every command imports what it needs when it runs: `unipelt check` starts in a blink."""
