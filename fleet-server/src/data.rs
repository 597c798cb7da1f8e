//! `behaveguard-fleet store`: all data to a file and into another database, and a database made small.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::Path;

use fleet_server::cli::StoreCommand;
use fleet_server::store::{self, Database};
use fleet_server::{files, server};

use crate::commands;

pub(crate) fn run(command: StoreCommand) -> Result<(), Box<dyn Error>> {
    match command {
        StoreCommand::Export { state, file } => export(&state, &file),
        StoreCommand::Import { state, postgres, file } => import(&state, postgres.as_deref(), &file),
        StoreCommand::Compact { state } => compact(&state),
    }
}

fn named(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

fn export(state: &Path, file: &Path) -> Result<(), Box<dyn Error>> {
    let connection = commands::open(state)?;
    let out = File::create_new(file).map_err(named(file))?;
    let mut out = BufWriter::new(out);
    let rows = store::export(&connection, &mut out, &mut |table, done, of| {
        eprintln!("{table}: {done} of {of}");
    });
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => {
            // Half of it is worth nothing.
            let _ = std::fs::remove_file(file);
            return Err(error.into());
        }
    };
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(named(file))?;
    println!("{rows} rows are in {}", file.display());
    Ok(())
}

fn import(state: &Path, postgres: Option<&str>, file: &Path) -> Result<(), Box<dyn Error>> {
    files::make_state_dir(state).map_err(named(state))?;
    let _lock = server::lock(state)?;
    let mut from = BufReader::new(File::open(file).map_err(named(file))?);
    let connection = match postgres {
        Some(address) => store::open_database(&Database::postgres(address)?)?,
        None => store::open_alone(state)?,
    };
    let mut last = (String::new(), 0);
    let rows = store::import(&connection, &mut from, &mut |table, done| {
        if last.0 != table || done >= last.1 + 50_000 {
            eprintln!("{table}: {done}");
            last = (table.to_owned(), done);
        }
    })?;
    // Not before all is there: until then the folder's own data is the data.
    if postgres.is_some() {
        Database::choose(state, postgres)?;
    }
    println!("{rows} rows were read from {}", file.display());
    Ok(())
}

fn compact(state: &Path) -> Result<(), Box<dyn Error>> {
    let connection = commands::open(state)?;
    let before = store::size(&connection)?;
    eprintln!("compacting {} MiB", before >> 20);
    store::compact(&connection)?;
    println!("{} MiB, {} before", store::size(&connection)? >> 20, before >> 20);
    Ok(())
}
