//! Takes secrets out of command lines before anything else sees them: what is told, and what a capture holds.
//!
//! The value of an option, a variable or a header whose name contains one of the configured words, and the password in
//! an address. Quoted text, such as what a shell is given, is read in the same way. Whatever is no option, has no name and
//! stands nowhere near one is not known for a secret.

use models::event::{Arguments, Event, EventKind, clipped};

/// What stands in a secret's place.
pub const MARK: &str = "***";

/// Names of secrets that are known without being configured.
pub const WORDS: &[&str] =
    &["passw", "pwd", "passphrase", "secret", "token", "credential", "authorization", "apikey"];

/// Schemes of the header `Authorization`, after which the secret comes.
const SCHEMES: [&str; 4] = ["basic", "bearer", "digest", "token"];

/// Takes the secrets out of the command line of a program that was started.
pub fn redact(event: &mut Event, words: &[String]) {
    if let EventKind::Exec { arguments, .. } = &mut event.kind
        && !words.is_empty()
    {
        *arguments = in_command_line(arguments, words);
    }
}

/// The same for a command line whose arguments a NUL ends.
fn in_command_line(arguments: &Arguments, words: &[String]) -> Arguments {
    let all = words.iter().any(|word| word == "*");
    let mut out = String::with_capacity(arguments.len());
    let mut next = Next::Shown;
    for (place, argument) in arguments.split_inclusive('\0').enumerate() {
        if all && place > 0 {
            next = out_of_sight(argument, next, &mut out);
            continue;
        }
        next = in_argument(argument, words, next, &mut out);
    }
    clipped(&out)
}

/// What is to be done with the token that comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Shown,
    Secret,
    /// With everything redacted: the program's text comes, which is no name.
    Text,
    /// With everything redacted: the file that it runs was there already.
    Rest,
}

/// With everything redacted, what stays is what the program is known by: options without their values, and the first
/// argument that is none, unless it is the program's text.
fn out_of_sight(argument: &str, next: Next, out: &mut String) -> Next {
    let (word, end) = argument.split_at(argument.trim_end_matches('\0').len());
    let (text, then) = match (word.strip_prefix('-'), word.split_once('='), next) {
        (Some(_), Some((name, _)), _) => (format!("{name}={MARK}"), next),
        (Some("m" | "jar"), _, Next::Shown) => (word.to_owned(), Next::Shown),
        (Some(letters), None, Next::Shown) if !letters.starts_with('-') && letters.ends_with(['c', 'e']) => {
            (word.to_owned(), Next::Text)
        }
        (Some(_), None, _) => (word.to_owned(), next),
        (None, _, Next::Shown) => (word.to_owned(), Next::Rest),
        (None, _, _) if word.is_empty() => (String::new(), next),
        (None, _, _) => (MARK.to_owned(), Next::Rest),
    };
    out.push_str(&text);
    out.push_str(end);
    then
}

/// Token by token, but a value of several words, which an argument or quotes hold together, is a secret as a whole.
fn in_argument(argument: &str, words: &[String], mut next: Next, out: &mut String) -> Next {
    let (word, end) = argument.split_at(argument.trim_end_matches('\0').len());
    let is_long = word.contains(is_separator) && !word.starts_with('-');
    let value = word.find('=').map(|at| word.split_at(at + 1)).filter(|(name, value)| {
        name.starts_with('-') && !value.is_empty() && !name.contains(is_separator) && is_secret(name, words)
    });
    if next == Next::Secret && is_long || value.is_some() {
        out.push_str(value.map_or("", |(name, _)| name));
        out.push_str(MARK);
        out.push_str(end);
        return Next::Shown;
    }
    let mut rest = word;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(rest.find(is_separator).unwrap_or(rest.len()));
        next = in_token(token, words, next, out);
        rest = after.trim_start_matches(is_separator);
        let between = &after[..after.len() - rest.len()];
        out.push_str(between);
        if next == Next::Secret
            && let Some(quote @ ('\'' | '"')) = between.chars().last()
            && let Some(closed) = rest.find(quote)
        {
            out.push_str(MARK);
            rest = &rest[closed..];
            next = Next::Shown;
        }
    }
    out.push_str(end);
    next
}

fn in_token(token: &str, words: &[String], next: Next, out: &mut String) -> Next {
    if token.is_empty() {
        return next;
    }
    if next == Next::Secret && !token.starts_with('-') {
        let scheme = SCHEMES.iter().any(|scheme| token.eq_ignore_ascii_case(scheme));
        out.push_str(if scheme { token } else { MARK });
        return if scheme { Next::Secret } else { Next::Shown };
    }
    if let Some((before, after)) = token.split_once("://")
        && let Some((user, host)) = after.split_once('@')
        && let Some((name, _)) = user.split_once(':')
        && !user.contains('/')
    {
        out.push_str(&format!("{before}://{name}:{MARK}@{host}"));
        return Next::Shown;
    }
    if let Some(at) = token.find(['=', ':']).filter(|at| is_secret(&token[..*at], words)) {
        let (name, value) = token.split_at(at + 1);
        out.push_str(name);
        if value.is_empty() {
            return Next::Secret;
        }
        out.push_str(MARK);
        return Next::Shown;
    }
    out.push_str(token);
    if token.starts_with('-') && is_secret(token, words) { Next::Secret } else { Next::Shown }
}

fn is_separator(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '"' | '\'' | ';' | '&' | '|')
}

fn is_secret(name: &str, words: &[String]) -> bool {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
    };
    let name = plain(name);
    words.iter().any(|word| name.contains(&plain(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(line: &str, words: &[&str]) -> String {
        let arguments = Arguments::try_from(line.replace('|', "\0").as_str()).unwrap();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        in_command_line(&arguments, &words).replace('\0', "|")
    }

    #[test]
    fn values_of_secrets_are_taken_out_however_they_are_given() {
        for (line, left) in [
            ("mysql|--password=hunter2|-h|db|", "mysql|--password=***|-h|db|"),
            ("x|--api-key|hunter2|--out|f|", "x|--api-key|***|--out|f|"),
            ("env|DB_PASSWORD=hunter2|./run|", "env|DB_PASSWORD=***|./run|"),
            ("sh|-c|PGPASSWORD='hunter2' psql; id|", "sh|-c|PGPASSWORD='***' psql; id|"),
            ("curl|-H|Authorization: Bearer hunter2|u|", "curl|-H|Authorization: Bearer ***|u|"),
            ("curl|ftp://bob:hunter2@h/p|", "curl|ftp://bob:***@h/p|"),
            ("x|--token|--quiet|a|", "x|--token|--quiet|a|"),
            ("python3|/opt/token/run.py|http://h:80/p|", "python3|/opt/token/run.py|http://h:80/p|"),
            ("x|--password=hun", "x|--password=***"),
            ("x|--password|my secret phrase|-v|", "x|--password|***|-v|"),
            ("x|--password=my secret phrase|-v|", "x|--password=***|-v|"),
            ("sh|-c|PGPASSWORD='my secret' psql|", "sh|-c|PGPASSWORD='***' psql|"),
        ] {
            assert_eq!(redacted(line, WORDS), left);
            assert_eq!(redacted(left, WORDS), left, "again it is the same");
        }
        assert_eq!(redacted("x|--pin=1|--password=2|", &["pin"]), "x|--pin=***|--password=2|");
    }

    #[test]
    fn with_everything_out_of_sight_a_program_is_known_as_before() {
        for (line, left) in [
            ("python3|-u|/opt/run.py|hunter2|-v|", "python3|-u|/opt/run.py|***|-v|"),
            ("python3|-m|http.server|8000|", "python3|-m|http.server|***|"),
            ("sh|-c|id hunter2|", "sh|-c|***|"),
            ("x|--to=hunter2|", "x|--to=***|"),
        ] {
            assert_eq!(redacted(line, &["*"]), left);
        }
    }
}
