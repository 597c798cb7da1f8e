//! All data of a fleet server, from a file to PostgreSQL and back.

use std::fs;

use serde_json::json;
use tests::fleet::Fleet;
use tests::postgres::Postgres;

use crate::device::{Device, alert, enroll};

#[test]
fn all_data_moves_from_a_file_to_postgresql_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Postgres::start().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut first = Fleet::start(&dir.path().join("first"), 60).unwrap();
    let (identity, tls) = enroll(dir.path(), &first, "gw-a");
    let device = Device::connect(&identity, tls);
    device.welcome().unwrap();
    device.listen();
    for seq in 1..=700 {
        device.publish_as("gw-a", &alert(seq, &format!("touched file{seq}; it never did before")));
    }
    device.acknowledged(700).unwrap();
    first.command(&["user", "add", "anna", "--role", "analyst"]).unwrap();
    let work = json!({ "state": "acknowledged", "comment": "looking" });
    let token = first.token().unwrap();
    assert_eq!(first.send("PATCH", "alerts/7", Some(&work), &token).unwrap().0, 200);

    // While it runs, and again when it has stopped.
    first.command(&["store", "export", &path("running")]).unwrap();
    first.stop().unwrap();
    let told = first.command(&["store", "export", &path("export")]).unwrap();
    assert!(told.contains("rows are in"), "{told}");
    assert!(first.command(&["store", "export", &path("export")]).is_err(), "it writes over nothing");
    let compacted = first.command(&["store", "compact"]).unwrap();
    assert!(compacted.contains("MiB"), "{compacted}");

    let address = server.database().unwrap();
    fs::write(path("no-export"), "something else").unwrap();
    let config = format!("[store]\npostgres = {address:?}\n");
    let second = dir.path().join("second");
    fs::create_dir(&second).unwrap();
    for key in ["ca.pem", "ca.key", "bundle.key", "api.token"] {
        fs::copy(first.state().join(key), second.join(key)).unwrap();
    }
    let mut second = Fleet::stopped(&second);
    // What fails leaves the folder as it was: its data is still its own file.
    let wrong = second.command(&["store", "import", "--postgres", &address, &path("no-export")]).unwrap_err();
    assert!(wrong.to_string().contains("no export of a fleet server's data"), "{wrong}");
    assert!(!second.state().join("postgres").exists(), "a failed import is remembered");
    second.command(&["store", "import", "--postgres", &address, &path("export")]).unwrap();
    let again = second.command(&["store", "import", &path("export")]).unwrap_err();
    assert!(again.to_string().contains("import into an empty one"), "{again}");
    second.command(&["store", "export", &path("of-postgres")]).unwrap();
    assert!(fs::read(path("export")).unwrap() == fs::read(path("of-postgres")).unwrap(), "another export");

    // What was moved is there, is found, and goes on.
    let second_state = second.state().to_owned();
    second = Fleet::start_with(&second_state, 60, &config).unwrap();
    assert_eq!(second.alerts("gw-a").unwrap().len(), 700);
    let found = second.get("alerts?q=file77").unwrap();
    assert_eq!(found["alerts"].as_array().unwrap().len(), 1, "{found}");
    let worked = second.get("alerts/7").unwrap();
    assert_eq!(
        (&worked["state"], &worked["comments"][0]["text"]),
        (&json!("acknowledged"), &json!("looking"))
    );
    let busy = second.command(&["store", "import", &path("export")]).unwrap_err();
    assert!(busy.to_string().contains("is used by another server"), "{busy}");
    second.stop().unwrap();

    let third = Fleet::stopped(&dir.path().join("third"));
    third.command(&["store", "import", &path("of-postgres")]).unwrap();
    third.command(&["store", "export", &path("of-file")]).unwrap();
    assert!(fs::read(path("export")).unwrap() == fs::read(path("of-file")).unwrap(), "another export");
}
