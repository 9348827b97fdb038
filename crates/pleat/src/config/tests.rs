//! What a person who writes a configuration notices.

use super::*;

fn load(name: &str, text: &str) -> Result<Config, ConfigError> {
    load_with(name, text, &[])
}

fn load_with(name: &str, text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::load(Some(&path), environment)
}

fn refused(name: &str, text: &str) -> String {
    let error = load(name, text).unwrap_err();
    format!("{}: {}", error.line.map_or("no line".to_string(), |line| format!("line {line}")), error.message)
}

const CONFIG_JSON: &str = r#"{
  "table_shard_keys": {
    "users": "user_id",
    "orders": "customer_id",
    "products": "product_id"
  },
  "scaling_thresholds": {
    "cpu_threshold_percent": 70,
    "total_entry_threshold_per_shard": 100
  },
  "scaling_strategy": "hot",
  "monitoring_interval_seconds": 10
}"#;

#[test]
fn without_a_file_everything_has_its_default() {
    assert_eq!(Config::load(None, []).unwrap(), Config::default());
}

#[test]
fn what_a_file_gives_is_taken_and_the_rest_has_its_default() {
    let config = load("config.json", CONFIG_JSON).unwrap();
    assert_eq!(config.table_shard_keys["orders"], "customer_id");
    assert_eq!(config.policy.thresholds.total_entries_per_shard, Some(100));
    assert_eq!(config.policy.thresholds.cpu_percent, 70.0);
    assert_eq!(config.policy.thresholds.memory_percent, 85.0, "not given: the default");
    assert_eq!(config.policy.strategy, Strategy::Hot);
    assert_eq!(config.policy.monitoring_interval_ms, 10_000);
}

#[test]
fn the_same_in_toml_and_yaml() {
    let toml = r#"
        scaling_strategy = "hot"
        monitoring_interval_seconds = 10
        [table_shard_keys]
        users = "user_id"
        orders = "customer_id"
        products = "product_id"
        [scaling_thresholds]
        cpu_threshold_percent = 70
        total_entry_threshold_per_shard = 100
    "#;
    let yaml = "
table_shard_keys: {users: user_id, orders: customer_id, products: product_id}
scaling_thresholds:
  cpu_threshold_percent: 70
  total_entry_threshold_per_shard: 100
scaling_strategy: hot
monitoring_interval_seconds: 10
";
    let json = load("config.json", CONFIG_JSON).unwrap();
    assert_eq!(load("pleat.toml", toml).unwrap(), json);
    assert_eq!(load("pleat.yaml", yaml).unwrap(), json);
    assert_eq!(load("pleat.yml", "").unwrap(), Config::default());
}

#[test]
fn every_key_arrives() {
    let toml = r#"
        nodes = 5
        initial_shards = 2
        listen = "127.0.0.1:7000"
        coordinator_listen = "127.0.0.1:7100"
        pg_listen = "off"
        data_dir = "elsewhere"
        insecure = true
        scaling_mode = "manual"
        scaling_strategy = "cold"
        monitoring_interval_seconds = 0.5
        cooldown_seconds = 2
        max_actions = 4
        action_window_seconds = 60
        max_shards = 3
        partition_count = 64
        replication_factor = 1
        slow_query_ms = 7
        [scaling_thresholds]
        memory_threshold_percent = 50.5
        connection_threshold = 7
        qps_threshold = 12.5
        [scale_in]
        enabled = false
        after_seconds = 90
        below_percent = 10
        max_bytes = 1000
        [limits]
        statement_timeout_ms = 1
        result_bytes = 2048
        gather_bytes = 4194304
        node_gather_bytes = 8388608
        spill_bytes = 0
        node_spill_bytes = 9
        disk_reserve_bytes = 10
        gathers = 2
        queued_writes = 3
        read_connections = 5
        connections = 17
        [tls]
        certificate_file = "c.pem"
        key_file = "k.pem"
        required = true
        [log]
        format = "json"
        level = "debug"
    "#;
    let config = load("pleat.toml", toml).unwrap();
    assert_eq!((config.nodes, config.initial_shards), (Some(5), Some(2)));
    assert_eq!(config.listen, Some("127.0.0.1:7000".parse().unwrap()));
    assert_eq!(config.coordinator_listen, Some("127.0.0.1:7100".parse().unwrap()));
    assert_eq!(config.pg_listen, Some(PgListen::Off));
    assert_eq!(config.data_dir, Some(PathBuf::from("elsewhere")));
    assert!(config.insecure && config.log.json && config.tls.required);
    assert_eq!(config.tls.certificate_file, Some(PathBuf::from("c.pem")));
    assert_eq!(config.tls.key_file, Some(PathBuf::from("k.pem")));
    assert_eq!((config.log.level.as_str(), config.slow_query_ms), ("debug", 7));
    assert_eq!((config.policy.mode, config.policy.strategy), (Mode::Manual, Strategy::Cold));
    assert_eq!((config.policy.monitoring_interval_ms, config.policy.cooldown_ms), (500, 2000));
    assert_eq!((config.policy.max_actions, config.policy.action_window_ms), (4, 60_000));
    assert_eq!((config.policy.max_shards, config.partition_count, config.replication_factor), (3, 64, 1));
    let scale_in = ScaleIn { enabled: false, after_ms: 90_000, below_percent: 10.0, max_bytes: 1000 };
    assert_eq!(config.policy.scale_in, scale_in);
    let thresholds = config.policy.thresholds;
    assert_eq!((thresholds.memory_percent, thresholds.connections), (50.5, 7));
    assert_eq!((thresholds.queries_per_second, thresholds.total_entries_per_shard), (12.5, None));
    let limits = Limits {
        statement_timeout_ms: 1,
        result_bytes: 2048,
        gather_bytes: 4 << 20,
        node_gather_bytes: 8 << 20,
        spill_bytes: 0,
        node_spill_bytes: 9,
        disk_reserve_bytes: 10,
        gathers: 2,
        queued_writes: 3,
        read_connections: 5,
        connections: 17,
    };
    assert_eq!(config.limits, limits);
}

#[test]
fn shards_that_a_cluster_starts_with_are_not_merged_away_unless_it_is_said() {
    let least =
        |toml: &str, shards| load("pleat.toml", toml).unwrap().founding_policy(shards, Engine::Sqlite).min_shards;
    assert_eq!((least("", 1), least("", 5), least("max_shards = 3", 5)), (1, 5, 3));
    assert_eq!(least("min_shards = 2", 5), 2);
    let refused = refused("c.toml", "min_shards = 5\nmax_shards = 3");
    assert!(refused.ends_with("min_shards is 5, and must be from 1 to 3"), "{refused}");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    let json = "{\n  \"scaling_strategy\": \"hot\",\n  \"scaling_tresholds\": {}\n}";
    assert_eq!(refused("c.json", json), "line 3: unknown key 'scaling_tresholds'; did you mean 'scaling_thresholds'?");
    let toml = "[scaling_thresholds]\n# cpu_treshold_percent = 1\ncpu_treshold_percent = 70\n";
    assert_eq!(
        refused("c.toml", toml),
        "line 3: unknown key 'scaling_thresholds.cpu_treshold_percent'; did you mean \
         'scaling_thresholds.cpu_threshold_percent'?"
    );
    let yaml = "log:\n  level: info\nlimits:\n  colour: red\n";
    assert!(refused("c.yaml", yaml).starts_with("line 4: unknown key 'limits.colour'; the guide"));
}

#[test]
fn a_key_in_the_wrong_table_is_led_to_the_right_one() {
    assert_eq!(
        refused("c.toml", "cpu_threshold_percent = 70"),
        "line 1: unknown key 'cpu_threshold_percent'; did you mean 'scaling_thresholds.cpu_threshold_percent'?"
    );
    assert!(refused("c.toml", "[limits]\nmax_shards = 3").ends_with("did you mean 'max_shards'?"));
}

#[test]
fn a_value_of_the_wrong_kind_says_what_is_expected() {
    let cases = [
        ("nodes = 0", "line 1: 'nodes' must be a whole number from 1 to 64, not 0"),
        ("nodes = 2.5", "line 1: 'nodes' must be a whole number from 1 to 64, not 2.5"),
        ("scaling_strategy = \"warm\"", "line 1: 'scaling_strategy' must be \"hot\" or \"cold\", not \"warm\""),
        (
            "monitoring_interval_seconds = -1",
            "line 1: 'monitoring_interval_seconds' must be a number from 0.1 to 86400, not -1",
        ),
        ("insecure = \"yes\"", "line 1: 'insecure' must be true or false, not \"yes\""),
        (
            "listen = \"8080\"",
            "line 1: 'listen' must be an address with a port, such as \"127.0.0.1:8080\", not \"8080\"",
        ),
        (
            "cooldown_seconds = nan",
            "line 1: 'cooldown_seconds' must be a number from 0 to 86400, not nothing, NaN or infinity",
        ),
        ("nodes = inf", "line 1: 'nodes' must be a whole number from 1 to 64, not nothing, NaN or infinity"),
        ("limits = 3", "line 1: 'limits' is a table of keys, not 3"),
        ("[table_shard_keys]\nusers = 1", "line 2: 'table_shard_keys.users' must be a column's name"),
        (
            "table_shard_keys = [\"users\"]",
            "line 1: 'table_shard_keys' must be a table of names, such as {\"users\": \"user_id\"}, not a list",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused("c.toml", text), expected);
    }
}

#[test]
fn mysql_shards_are_not_yet_and_the_line_is_named() {
    let json = "{\n  \"table_shard_keys\": {\"users\": \"user_id\"},\n  \"shards\": {\n    \
                \"shard-1\": \"testuser:testpass@tcp(127.0.0.1:3306)/shard1_db\"\n  }\n}";
    let message = refused("c.json", json);
    assert!(
        message.starts_with("line 4: 'shards' names MySQL servers: not yet, Pleat can't use those as shards"),
        "{message}"
    );
    assert!(!message.contains("testpass"), "a secret must not be shown: {message}");
}

#[test]
fn text_that_does_not_parse_names_the_line_and_the_language() {
    assert!(refused("c.json", "{\n  \"nodes\": 3,\n}").starts_with("line 3: this is not valid JSON"));
    assert!(refused("c.toml", "nodes = 3\nlisten = \n").starts_with("line 2: this is not valid TOML"));
    assert!(refused("c.yaml", "nodes: 3\n  listen: [\n").contains("this is not valid YAML"));
    assert!(refused("c.ini", "nodes=3").contains("must end in .toml"));
    assert!(refused("c.json", "[1]").contains("a table of keys"));
}

#[test]
fn half_a_certificate_is_none() {
    assert!(refused("c.toml", "[tls]\ncertificate_file = \"c.pem\"").contains("tls.key_file is missing"));
    assert!(refused("c.toml", "[tls]\nkey_file = \"k.pem\"").contains("tls.certificate_file is missing"));
    assert!(refused("c.toml", "[tls]\nrequired = true").contains("tls.required needs a certificate"));
    assert!(refused("c.toml", "[tls]\ncertificate = \"c.pem\"").contains("did you mean"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("no/such/pleat.toml")), []).unwrap_err().to_string();
    assert!(error.starts_with("no/such/pleat.toml: the configuration can't be read"), "{error}");
}

#[test]
fn the_environment_lies_over_the_file() {
    let environment = [
        ("PLEAT_SCALING_THRESHOLDS__CPU_THRESHOLD_PERCENT", "80"),
        ("PLEAT_TABLE_SHARD_KEYS", "users=id, orders=customer"),
        ("PLEAT_INSECURE", "true"),
        ("PLEAT_URL", "http://elsewhere"),
        ("PLEAT_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("HOME", "/"),
    ];
    let config = load_with("c.json", CONFIG_JSON, &environment).unwrap();
    assert_eq!(config.policy.thresholds.cpu_percent, 80.0);
    assert_eq!(config.policy.thresholds.total_entries_per_shard, Some(100), "the file's");
    assert_eq!(config.table_shard_keys["users"], "id");
    assert_eq!(config.table_shard_keys.len(), 2);
    assert!(config.insecure);
}

#[test]
fn a_wrong_variable_is_named() {
    let refused = |name: &str, value: &str| load_with("c.toml", "", &[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        refused("PLEAT_MAX_SHARD", "3"),
        "environment variable PLEAT_MAX_SHARD: unknown key 'max_shard'; did you mean PLEAT_MAX_SHARDS?"
    );
    assert_eq!(
        refused("PLEAT_MAX_SHARDS", "many"),
        "environment variable PLEAT_MAX_SHARDS: must be a whole number from 1 to 1024, not 'many'"
    );
    assert!(refused("PLEAT_NODES", "0").contains("from 1 to 64"));
}

#[test]
fn the_guide_describes_every_key() {
    let guide = include_str!("../../../../docs/guide/configuration.md");
    for (key, _) in keys::KEYS {
        assert!(guide.contains(&format!("`{key}`")), "docs/guide/configuration.md does not describe `{key}`");
    }
}

#[test]
fn the_configuration_of_the_tour_is_accepted() {
    let config = load("growing.toml", include_str!("../../../../docs/guide/growing.toml")).unwrap();
    assert_eq!(config.policy.thresholds.total_entries_per_shard, Some(10_000));
}
