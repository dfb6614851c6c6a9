//! The help of every command: it fits a narrow terminal, and says of everything what it is.

use clap::{Command, CommandFactory as _};
use unicode_width::UnicodeWidthStr as _;

use super::Arguments;

fn each(command: &mut Command, path: &str, look: &mut impl FnMut(&mut Command, &str)) {
    look(command, path);
    for inner in command.get_subcommands_mut() {
        let path = format!("{path} {}", inner.get_name());
        each(inner, &path, look);
    }
}

#[test]
fn the_help_of_each_command_fits_eighty_columns() {
    let mut command = Arguments::command();
    command.build();
    let mut seen = 0;
    each(&mut command, "ambo", &mut |command, path| {
        seen += 1;
        for help in [command.render_help(), command.render_long_help()] {
            let help = help.to_string();
            let long = help.lines().find(|line| line.width() > 80);
            assert_eq!(long, None, "{path}");
        }
    });
    assert!(seen > 40, "only {seen} commands were looked at");
}

#[test]
fn each_command_and_argument_says_what_it_is() {
    let mut command = Arguments::command();
    each(&mut command, "ambo", &mut |command, path| {
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} of {path} has no help", argument.get_id());
        }
    });
}
