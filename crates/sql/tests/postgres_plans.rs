//! How statements for PostgreSQL shards are routed, split and refused, case by case.

mod postgres;

#[test]
fn explained() {
    let world = postgres::world();
    for name in ["reads", "writes", "session", "serial", "views"] {
        let path = format!("{}/tests/postgres/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let script = std::fs::read_to_string(&path).unwrap();
        let mut shown = String::new();
        for line in script.lines() {
            if let Some(sql) = line.strip_prefix("> ") {
                shown += &format!("> {sql}\n{}\n", world.explain(&sql.replace("\\n", "\n")));
            } else if line.starts_with('#') {
                shown += &format!("{line}\n\n");
            }
        }
        if std::env::var_os("SHOW").is_some() {
            std::fs::write(&path, &shown).unwrap();
            continue;
        }
        assert_eq!(shown, script, "{name}: run with SHOW=1 to write what is shown now, and read it");
    }
}
