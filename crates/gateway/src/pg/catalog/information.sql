-- What the information schema shows of the system catalog. Made anew for another database's name, which is in every row.
DROP TABLE IF EXISTS information_schema.schemata;
CREATE TABLE information_schema.schemata AS
  SELECT current_database() AS catalog_name, nspname AS schema_name, 'pleat' AS schema_owner FROM pg_namespace;
DROP TABLE IF EXISTS information_schema.tables;
CREATE TABLE information_schema.tables AS
  SELECT current_database() AS table_catalog, n.nspname AS table_schema, c.relname AS table_name,
         CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'BASE TABLE' END AS table_type, 'YES' AS is_insertable_into, 'NO' AS is_typed
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v');
DROP TABLE IF EXISTS information_schema.views;
CREATE TABLE information_schema.views AS
  SELECT current_database() AS table_catalog, schemaname AS table_schema, viewname AS table_name, definition AS view_definition
  FROM pg_views;
DROP TABLE IF EXISTS information_schema.columns;
CREATE TABLE information_schema.columns AS
  SELECT current_database() AS table_catalog, n.nspname AS table_schema, c.relname AS table_name, a.attname AS column_name,
         a.attnum AS ordinal_position, d.adbin AS column_default, CASE a.attnotnull WHEN 1 THEN 'NO' ELSE 'YES' END AS is_nullable,
         t.formal AS data_type, NULL AS character_maximum_length, NULL AS character_octet_length, NULL AS numeric_precision,
         NULL AS numeric_precision_radix, NULL AS numeric_scale, NULL AS datetime_precision, 'pg_catalog' AS udt_schema,
         t.typname AS udt_name, 'NO' AS is_identity, NULL AS identity_generation,
         CASE a.attgenerated WHEN 's' THEN 'ALWAYS' ELSE 'NEVER' END AS is_generated, NULL AS generation_expression, 'YES' AS is_updatable
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
       JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attnum > 0 AND c.relkind IN ('r', 'v');
DROP TABLE IF EXISTS information_schema.table_constraints;
CREATE TABLE information_schema.table_constraints AS
  SELECT current_database() AS constraint_catalog, 'public' AS constraint_schema, o.conname AS constraint_name,
         current_database() AS table_catalog, 'public' AS table_schema, c.relname AS table_name,
         CASE o.contype WHEN 'p' THEN 'PRIMARY KEY' WHEN 'u' THEN 'UNIQUE' ELSE 'FOREIGN KEY' END AS constraint_type,
         'NO' AS is_deferrable, 'NO' AS initially_deferred
  FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid;
DROP TABLE IF EXISTS information_schema.key_column_usage;
CREATE TABLE information_schema.key_column_usage AS
  SELECT current_database() AS constraint_catalog, 'public' AS constraint_schema, o.conname AS constraint_name,
         current_database() AS table_catalog, 'public' AS table_schema, c.relname AS table_name, a.attname AS column_name,
         array_place(o.conkey, a.attnum) AS ordinal_position, NULL AS position_in_unique_constraint
  FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
       JOIN pg_attribute a ON a.attrelid = o.conrelid AND array_place(o.conkey, a.attnum) IS NOT NULL;
