//! Tables of the documents that are made from the code.

use std::fs;

/// The table below `head` in a page is these rows; with `UPDATE_DOCS` in the environment it is written. `test` is a part of the
/// test's name that finds it.
pub(crate) fn table(page: &str, head: &str, rows: &[String], test: &str) {
    let path = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(head).expect("the table's head");
    let end = rest.find("\n\n").expect("the table ends");
    let table = rows.join("\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}{head}{table}{}", &rest[end..])).unwrap();
    } else {
        assert!(rest[..end] == table, "run `UPDATE_DOCS=1 cargo xtask test {test}` and commit docs/");
    }
}
