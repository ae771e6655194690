//! The canonical text of whole tables, compared with files a person can read.
//!
//! After an intended change: `UPDATE_GOLDEN=1 cargo test -p highwire-agent`, and
//! read the difference before committing it.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod plans;

use std::{env, fs};

use highwire_agent::table::{Elements, Transaction};

#[test]
fn whole_tables_read_as_in_the_golden_files() {
    for (name, data_path, plan) in plans::golden() {
        let text = Transaction::Replace(data_path, Elements::of(&plan, data_path)).to_string();
        let path = plans::golden_file(name);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; run with UPDATE_GOLDEN=1", path.display())
        });
        assert_eq!(text, golden, "{name}: differs from {}", path.display());
    }
}
