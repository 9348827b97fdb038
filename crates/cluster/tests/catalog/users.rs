//! Users: added, changed, removed; never printed.

use super::*;

pub fn verifier(salt: usize) -> Verifier {
    Verifier { iterations: 4_096, salt: vec![7; salt], stored_key: [8; 32], server_key: [9; 32] }
}

pub fn put(name: &str, salt: usize, secret: u8, at: u64) -> Command {
    Command::PutUser { name: name.to_owned(), verifier: verifier(salt), secret: Secret([secret; 32]), at }
}

pub fn remove(name: &str, last: bool) -> Command {
    Command::RemoveUser { name: name.to_owned(), last, at: 9 }
}

#[test]
fn users_come_change_and_go() {
    let mut catalog = founded(1, 1);
    assert_eq!((catalog.users.len(), &catalog.secret), (0, &None));
    catalog.apply(&put("ada", 16, 1, 5)).unwrap();
    catalog.apply(&put("Ada", 16, 2, 6)).unwrap();
    catalog.apply(&put("ada", 20, 3, 7)).unwrap();
    assert_eq!(catalog.check(), []);
    assert_eq!(catalog.secret, Some(Secret([1; 32])), "the first one stays, so that what is derived from it does");
    let ada = &catalog.users["ada"];
    assert_eq!((ada.added, ada.changed, ada.verifier.salt.len()), (5, 7, 20));
    catalog.apply(&remove("ada", false)).unwrap();
    let refused = catalog.apply(&remove("ada", false)).unwrap_err();
    assert_eq!(refused.to_string(), "user \"ada\" does not exist");
    let refused = catalog.apply(&remove("Ada", false)).unwrap_err().to_string();
    assert!(refused.contains("the last user"), "{refused}");
    catalog.apply(&remove("Ada", true)).unwrap();
    assert!(catalog.users.is_empty());
    catalog.apply(&put("ada", 16, 4, 8)).unwrap();
    assert_eq!(catalog.secret, Some(Secret([1; 32])));
    assert_eq!(catalog.check(), []);
}

#[test]
fn what_is_no_user_is_refused_and_changes_nothing() {
    let mut catalog = founded(1, 1);
    let before = catalog.clone();
    let long = "ü".repeat(32);
    for name in ["", "a\0b", "a\nb", ".", "..", &long] {
        assert!(catalog.apply(&put(name, 16, 1, 5)).is_err(), "{name:?}");
    }
    assert!(catalog.apply(&put("ada", 7, 1, 5)).is_err(), "its salt is short");
    assert!(catalog.apply(&put("ada", 65, 1, 5)).is_err(), "its salt is long");
    for iterations in [0, 4_095, 1_000_001] {
        let verifier = Verifier { iterations, ..verifier(16) };
        let put = Command::PutUser { name: "ada".to_owned(), verifier, secret: Secret([1; 32]), at: 5 };
        assert!(catalog.apply(&put).is_err(), "{iterations}");
    }
    assert_eq!(catalog, before);
    for number in 0..Catalog::USERS_MAX {
        catalog.apply(&put(&format!("user {number}"), 16, 1, 5)).unwrap();
    }
    assert!(catalog.apply(&put("one more", 16, 1, 5)).unwrap_err().to_string().contains("limit"));
    catalog.apply(&put("user 7", 16, 1, 6)).unwrap();
    assert_eq!(catalog.check(), []);
}

#[test]
fn nothing_secret_is_printed() {
    let mut catalog = founded(1, 1);
    let put = put("ada", 16, 1, 5);
    catalog.apply(&put).unwrap();
    for printed in [format!("{put:?}"), format!("{catalog:?}"), format!("{catalog:#?}")] {
        let printed = printed.split_whitespace().collect::<String>();
        assert!(printed.contains("ada") && printed.contains("Verifier(…)") && printed.contains("Secret(…)"));
        for bytes in ["[7,7", "[8,8", "[9,9", "[1,1"] {
            assert!(!printed.contains(bytes), "{bytes} in {printed}");
        }
    }
}
