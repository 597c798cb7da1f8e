//! The command line in the documents is the one in the code.

use agent::cli::Cli as Agent;
use clap::{Command, CommandFactory as _};
use fleet_server::cli::Cli as Fleet;

use super::{generated, pages, read};

/// Columns of the reference, whatever the terminal has.
const WIDTH: usize = 100;

/// Both programs, with what clap adds.
fn programs() -> [Command; 2] {
    let mut programs = [Agent::command(), Fleet::command()];
    programs.iter_mut().for_each(Command::build);
    programs
}

/// The help of a command, or of those below it.
fn describe(path: &str, command: &mut Command, into: &mut String) {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| *name != "help") {
        let below = command.find_subcommand_mut(name).unwrap();
        describe(&format!("{path} {name}"), below, into);
    }
    if names.is_empty() {
        let help = command.clone().bin_name(path).term_width(WIDTH).render_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        *into += &format!("## {path}\n\n```text\n{}\n```\n\n", help.join("\n").trim_end());
    }
}

#[test]
fn the_command_reference_is_the_one_in_the_code() {
    let mut text = String::from(
        "# Commands\n\nWhat each command says with `--help`. Made from `agent/src/cli.rs` and `fleet-server/src/cli.rs`; after a \
         change there run\n`UPDATE_DOCS=1 cargo xtask test command_reference`. Exit codes and what each is for stand in \
         [operations.md](operations.md).\n\n",
    );
    for mut program in programs() {
        let name = program.get_name().to_owned();
        describe(&name, &mut program, &mut text);
    }
    let text = format!("{}\n", text.trim_end());
    generated("docs/cli.md", "command_reference", &text);
}

/// The words of one line of shell up to what is no word of the command, comments and redirections left out.
fn words(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote, mut begun) = (String::new(), None, false);
    let end_word = |word: &mut String, begun: &mut bool, commands: &mut Vec<Vec<String>>| {
        if std::mem::take(begun) {
            commands.last_mut().unwrap().push(std::mem::take(word));
        }
    };
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => word.push(character),
            (None, '"' | '\'') => (quote, begun) = (Some(character), true),
            (None, '#') if !begun => break,
            (None, '&' | '|' | ';' | '>') => {
                end_word(&mut word, &mut begun, &mut commands);
                commands.push(Vec::new());
            }
            (None, ' ') => end_word(&mut word, &mut begun, &mut commands),
            (None, _) => {
                word.push(character);
                begun = true;
            }
        }
    }
    end_word(&mut word, &mut begun, &mut commands);
    commands
}

#[test]
fn every_command_in_a_block_of_the_documents_is_understood() {
    let mut seen = 0;
    for page in pages() {
        let text = read(&page);
        let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        for command in blocks.flat_map(str::lines).flat_map(words) {
            let program = command.first().map(String::as_str);
            let parsed = match program {
                Some("behaveguard") => <Agent as clap::Parser>::try_parse_from(&command).err(),
                Some("behaveguard-fleet") => <Fleet as clap::Parser>::try_parse_from(&command).err(),
                _ => continue,
            };
            seen += 1;
            assert!(parsed.is_none(), "{page}: {command:?}: {}", parsed.unwrap());
        }
    }
    assert!(seen >= 30, "only {seen} commands were found");
}

#[test]
fn every_command_named_in_a_sentence_is_there_with_its_options() {
    let programs = programs();
    let mut seen = 0;
    for page in pages() {
        let text = read(&page).replace('\n', " ");
        for span in text.split('`').skip(1).step_by(2) {
            let mut words = span.split(' ').filter(|word| !word.is_empty()).peekable();
            let Some(program) = words.next() else { continue };
            let Some(mut command) = programs.iter().find(|known| known.get_name() == program) else {
                continue;
            };
            while let Some(below) = words.peek().and_then(|word| command.find_subcommand(word)) {
                command = below;
                words.next();
            }
            // What stands there is a value where the command takes one, and else a command that is none.
            let takes = command.get_positionals().next().is_some();
            let next = words.peek().copied().unwrap_or_default();
            let is_word = next.starts_with(|c: char| c.is_ascii_lowercase());
            assert!(takes || !is_word, "{page}: `{span}`: {program} has no command {next}");
            for option in words.filter_map(|word| word.strip_prefix("--")) {
                let name = option.split(['=', ']']).next().unwrap_or_default();
                let known = |long: Option<&str>| long == Some(name);
                let there = command.get_arguments().any(|argument| known(argument.get_long()));
                assert!(there, "{page}: `{span}`: no option --{name}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 30, "only {seen} commands were found");
}
