//! What PostgreSQL's own functions do besides computing. A function that isn't listed may do anything.

/// How much a function's value depends on when and where it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purity {
    /// On its arguments alone.
    Immutable,
    /// On the session, the transaction's start or the catalog, too.
    Stable,
    /// On the call; but it changes nothing.
    Volatile,
    /// Not known.
    Unknown,
}

const IMMUTABLE: &str = "abs acos acosd acosh area array_dims array_fill array_length array_lower array_ndims array_position \
    array_positions array_remove array_replace array_upper ascii asin asind asinh atan atan2 atan2d atand atanh bit_count bit_length box \
    broadcast btrim cardinality cbrt ceil ceiling center char_length character_length chr circle coalesce convert convert_from convert_to \
    cos cosd cosh cot cotd daterange date_bin decode degrees diagonal diameter div encode exp factorial family floor gcd \
    generate_series generate_subscripts get_bit get_byte greatest hashtext hashtextextended height host hostmask inet_merge inet_same_family \
    initcap int4range int8range isempty isfinite json_array_elements json_array_elements_text json_array_length json_each json_each_text \
    json_extract_path json_extract_path_text json_object json_object_keys json_strip_nulls json_typeof jsonb_array_elements \
    jsonb_array_elements_text jsonb_array_length jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert \
    jsonb_object jsonb_object_keys jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first \
    jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_typeof justify_days justify_hours justify_interval lcm least left length \
    ln log log10 lower lower_inc lower_inf lpad lseg ltrim make_date make_interval make_time make_timestamp masklen md5 min_scale mod \
    multirange netmask network normalize npoints nullif num_nonnulls num_nulls numrange octet_length overlay parse_ident path pi point \
    polygon position pow power quote_ident quote_nullable radians radius range_merge regexp_count regexp_instr regexp_like regexp_match \
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right round rpad rtrim \
    scale set_bit set_byte set_masklen setweight sha224 sha256 sha384 sha512 sign similar_to_escape sin sind sinh slope split_part \
    sqrt starts_with string_to_array string_to_table strip strpos substr substring tan tand tanh text to_hex translate trim_array \
    trim_scale trunc ts_delete ts_filter ts_rank ts_rank_cd tsquery_phrase tsrange tsvector_to_array unistr unnest upper upper_inc \
    upper_inf width width_bucket";

const STABLE: &str = "age array_to_json array_to_string array_to_tsvector col_description concat concat_ws current_catalog current_database current_date \
    current_role current_schema current_schemas current_setting current_time current_timestamp current_user date_part date_trunc enum_first enum_last \
    enum_range extract format format_type get_current_ts_config has_any_column_privilege has_column_privilege has_database_privilege \
    has_function_privilege has_schema_privilege has_sequence_privilege has_table_privilege has_type_privilege inet_client_addr \
    inet_client_port inet_server_addr inet_server_port json_build_array json_build_object json_populate_record json_populate_recordset \
    json_to_record json_to_recordset jsonb_build_array jsonb_build_object jsonb_populate_record jsonb_populate_recordset \
    jsonb_to_record jsonb_to_recordset localtime localtimestamp make_timestamptz now obj_description pg_backend_pid \
    pg_char_to_encoding pg_client_encoding pg_column_size pg_encoding_to_char pg_function_is_visible pg_get_constraintdef \
    pg_get_expr pg_get_function_arguments pg_get_function_identity_arguments pg_get_function_result pg_get_functiondef \
    pg_get_indexdef pg_get_keywords pg_get_partkeydef pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef \
    pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role pg_is_in_recovery pg_is_other_temp_schema pg_my_temp_schema \
    pg_opclass_is_visible pg_operator_is_visible pg_partition_ancestors pg_partition_root pg_partition_tree pg_postmaster_start_time \
    pg_relation_is_publishable pg_relation_is_updatable pg_size_bytes pg_size_pretty pg_table_is_visible pg_tablespace_location \
    pg_trigger_depth pg_type_is_visible pg_typeof phraseto_tsquery plainto_tsquery quote_literal row_security_active row_to_json \
    session_user shobj_description statement_timestamp timezone to_ascii to_char to_date to_json to_jsonb to_number to_regclass \
    to_regnamespace to_regproc to_regrole to_regtype to_timestamp to_tsquery to_tsvector transaction_timestamp ts_headline \
    tstzrange user version websearch_to_tsquery";

const VOLATILE: &str = "clock_timestamp gen_random_uuid pg_column_compression pg_database_size pg_indexes_size pg_relation_size pg_sleep pg_table_size \
    pg_tablespace_size pg_total_relation_size random timeofday uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4";

const AGGREGATES: &str = "any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp every json_agg \
    json_object_agg jsonb_agg jsonb_object_agg max min mode percentile_cont percentile_disc range_agg range_intersect_agg regr_avgx regr_avgy \
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg sum var_pop var_samp \
    variance xmlagg";

const WINDOWS: &str =
    "cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number";

/// Functions that give sets of rows.
const SETS: &str = "generate_series generate_subscripts json_array_elements json_array_elements_text json_each json_each_text \
    json_object_keys json_populate_recordset json_to_recordset jsonb_array_elements jsonb_array_elements_text jsonb_each jsonb_each_text \
    jsonb_object_keys jsonb_path_query jsonb_populate_recordset jsonb_to_recordset regexp_matches regexp_split_to_table string_to_table unnest";

fn listed(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|word| word == name)
}

/// What is known of the function `name` (in lower case, without a schema).
pub(super) fn purity(name: &str) -> Purity {
    if listed(IMMUTABLE, name) || is_aggregate(name) || listed(WINDOWS, name) {
        Purity::Immutable
    } else if listed(STABLE, name) {
        Purity::Stable
    } else if listed(VOLATILE, name) {
        Purity::Volatile
    } else {
        Purity::Unknown
    }
}

pub(super) fn is_aggregate(name: &str) -> bool {
    listed(AGGREGATES, name)
}

/// Whether an aggregate's value may depend on the order in which it gets the rows.
pub(super) fn minds_order(name: &str) -> bool {
    name.ends_with("_agg") || matches!(name, "xmlagg" | "mode")
}

/// Whether each row may become several, or none.
pub(super) fn gives_sets(name: &str) -> bool {
    listed(SETS, name)
}

/// Whether the function leaves something in its session.
pub(super) fn pins(name: &str) -> bool {
    let locks = name.contains("advisory") && !name.contains("_xact_");
    locks || matches!(name, "set_config" | "setseed" | "lo_open" | "dblink_connect")
}
