-- The system catalog's tables, as far as clients ask them. What is always empty here is at the end.
CREATE TABLE pg_catalog.pg_namespace (oid OID, nspname NAME, nspowner OID, nspacl TEXT);
INSERT INTO pg_namespace VALUES (11, 'pg_catalog', 10, NULL), (2200, 'public', 10, NULL), (13000, 'information_schema', 10, NULL);
CREATE TABLE pg_catalog.pg_class (
  oid OID PRIMARY KEY, relname NAME, relnamespace OID, reltype OID, reloftype OID DEFAULT 0, relowner OID DEFAULT 10,
  relam OID DEFAULT 2, relfilenode OID DEFAULT 0, reltablespace OID DEFAULT 0, relpages INT DEFAULT 0,
  reltuples REAL DEFAULT -1, relallvisible INT DEFAULT 0, reltoastrelid OID DEFAULT 0, relhasindex BOOL DEFAULT 0,
  relisshared BOOL DEFAULT 0, relpersistence PG_CHAR DEFAULT 'p', relkind PG_CHAR, relnatts INT DEFAULT 0,
  relchecks INT DEFAULT 0, relhasrules BOOL DEFAULT 0, relhastriggers BOOL DEFAULT 0, relhassubclass BOOL DEFAULT 0,
  relrowsecurity BOOL DEFAULT 0, relforcerowsecurity BOOL DEFAULT 0, relispopulated BOOL DEFAULT 1,
  relreplident PG_CHAR DEFAULT 'd', relispartition BOOL DEFAULT 0, relrewrite OID DEFAULT 0, relfrozenxid INT DEFAULT 0,
  relminmxid INT DEFAULT 0, relacl TEXT, reloptions TEXT, relpartbound TEXT);
CREATE TABLE pg_catalog.pg_attribute (
  attrelid OID, attname NAME, atttypid OID, attstattarget INT DEFAULT -1, attlen INT DEFAULT -1, attnum INT,
  attndims INT DEFAULT 0, attcacheoff INT DEFAULT -1, atttypmod INT DEFAULT -1, attbyval BOOL DEFAULT 0,
  attalign PG_CHAR DEFAULT 'i', attstorage PG_CHAR DEFAULT 'p', attcompression PG_CHAR DEFAULT '', attnotnull BOOL DEFAULT 0,
  atthasdef BOOL DEFAULT 0, atthasmissing BOOL DEFAULT 0, attidentity PG_CHAR DEFAULT '', attgenerated PG_CHAR DEFAULT '',
  attisdropped BOOL DEFAULT 0, attislocal BOOL DEFAULT 1, attinhcount INT DEFAULT 0, attcollation OID DEFAULT 0, attacl TEXT,
  attoptions TEXT, attfdwoptions TEXT, attmissingval TEXT);
CREATE INDEX pg_catalog.pg_attribute_by_relation ON pg_attribute (attrelid, attnum);
CREATE TABLE pg_catalog.pg_attrdef (oid OID, adrelid OID, adnum INT, adbin TEXT);
CREATE TABLE pg_catalog.pg_index (
  indexrelid OID, indrelid OID, indnatts INT, indnkeyatts INT, indisunique BOOL, indnullsnotdistinct BOOL DEFAULT 0,
  indisprimary BOOL, indisexclusion BOOL DEFAULT 0, indimmediate BOOL DEFAULT 1, indisclustered BOOL DEFAULT 0,
  indisvalid BOOL DEFAULT 1, indcheckxmin BOOL DEFAULT 0, indisready BOOL DEFAULT 1, indislive BOOL DEFAULT 1,
  indisreplident BOOL DEFAULT 0, indkey TEXT, indcollation TEXT DEFAULT '', indclass TEXT DEFAULT '',
  indoption TEXT DEFAULT '', indexprs TEXT, indpred TEXT);
CREATE TABLE pg_catalog.pg_constraint (
  oid OID, conname NAME, connamespace OID DEFAULT 2200, contype PG_CHAR, condeferrable BOOL DEFAULT 0,
  condeferred BOOL DEFAULT 0, convalidated BOOL DEFAULT 1, conrelid OID, contypid OID DEFAULT 0, conindid OID DEFAULT 0,
  conparentid OID DEFAULT 0, confrelid OID DEFAULT 0, confupdtype PG_CHAR DEFAULT ' ', confdeltype PG_CHAR DEFAULT ' ',
  confmatchtype PG_CHAR DEFAULT ' ', conislocal BOOL DEFAULT 1, coninhcount INT DEFAULT 0, connoinherit BOOL DEFAULT 1,
  conkey TEXT, confkey TEXT, conpfeqop TEXT, conbin TEXT, definition TEXT);
CREATE TABLE pg_catalog.pg_type (
  oid OID PRIMARY KEY, typname NAME, typnamespace OID DEFAULT 11, typowner OID DEFAULT 10, typlen INT, typbyval BOOL DEFAULT 0,
  typtype PG_CHAR DEFAULT 'b', typcategory PG_CHAR, typispreferred BOOL DEFAULT 0, typisdefined BOOL DEFAULT 1,
  typdelim PG_CHAR DEFAULT ',', typrelid OID DEFAULT 0, typsubscript OID DEFAULT 0, typelem OID DEFAULT 0,
  typarray OID DEFAULT 0, typinput TEXT DEFAULT '', typoutput TEXT DEFAULT '', typreceive TEXT DEFAULT '',
  typsend TEXT DEFAULT '', typnotnull BOOL DEFAULT 0, typbasetype OID DEFAULT 0, typtypmod INT DEFAULT -1,
  typndims INT DEFAULT 0, typcollation OID DEFAULT 0, typdefault TEXT, formal TEXT);
CREATE TABLE pg_catalog.pg_database (
  oid OID, datname NAME, datdba OID DEFAULT 10, encoding INT DEFAULT 6, datlocprovider PG_CHAR DEFAULT 'c',
  datistemplate BOOL DEFAULT 0, datallowconn BOOL DEFAULT 1, datconnlimit INT DEFAULT -1, datcollate TEXT DEFAULT 'C',
  datctype TEXT DEFAULT 'C', daticulocale TEXT, datcollversion TEXT, dattablespace OID DEFAULT 1663, datacl TEXT);
CREATE TABLE pg_catalog.pg_roles (
  oid OID DEFAULT 10, rolname NAME, rolsuper BOOL DEFAULT 0, rolinherit BOOL DEFAULT 1, rolcreaterole BOOL DEFAULT 0,
  rolcreatedb BOOL DEFAULT 0, rolcanlogin BOOL DEFAULT 1, rolreplication BOOL DEFAULT 0, rolconnlimit INT DEFAULT -1,
  rolpassword TEXT, rolvaliduntil TEXT, rolbypassrls BOOL DEFAULT 0, rolconfig TEXT);
CREATE VIEW pg_catalog.pg_user AS SELECT rolname AS usename, oid AS usesysid, rolsuper AS usesuper FROM pg_roles;
CREATE VIEW pg_catalog.pg_authid AS SELECT * FROM pg_roles;
CREATE TABLE pg_catalog.pg_settings (
  name TEXT, setting TEXT, unit TEXT, category TEXT, short_desc TEXT, context TEXT DEFAULT 'user', vartype TEXT DEFAULT 'string',
  source TEXT DEFAULT 'default', boot_val TEXT, reset_val TEXT);
CREATE TABLE pg_catalog.pg_am (oid OID, amname NAME, amhandler TEXT, amtype PG_CHAR);
INSERT INTO pg_am VALUES (2, 'heap', '', 't'), (403, 'btree', '', 'i');
CREATE TABLE pg_catalog.pg_tablespace (oid OID, spcname NAME, spcowner OID, spcacl TEXT, spcoptions TEXT);
INSERT INTO pg_tablespace VALUES (1663, 'pg_default', 10, NULL, NULL);
CREATE TABLE pg_catalog.pg_collation (
  oid OID, collname NAME, collnamespace OID, collowner OID, collprovider PG_CHAR, collisdeterministic BOOL, collencoding INT,
  collcollate TEXT, collctype TEXT, colliculocale TEXT, collversion TEXT);
INSERT INTO pg_collation VALUES (100, 'default', 11, 10, 'd', 1, -1, NULL, NULL, NULL, NULL), (950, 'C', 11, 10, 'c', 1, -1, 'C', 'C', NULL, NULL);
CREATE TABLE pg_catalog.pg_trigger (
  oid OID, tgrelid OID, tgparentid OID DEFAULT 0, tgname NAME, tgfoid OID DEFAULT 0, tgtype INT DEFAULT 0,
  tgenabled PG_CHAR DEFAULT 'O', tgisinternal BOOL DEFAULT 0, tgconstraint OID DEFAULT 0, tgdeferrable BOOL DEFAULT 0, definition TEXT);
CREATE TABLE pg_catalog.pg_views (schemaname NAME, viewname NAME, viewowner NAME, definition TEXT);
CREATE VIEW pg_catalog.pg_tables AS
  SELECT n.nspname AS schemaname, c.relname AS tablename, 'pleat' AS tableowner, NULL AS tablespace, c.relhasindex AS hasindexes,
         c.relhasrules AS hasrules, c.relhastriggers AS hastriggers, c.relrowsecurity AS rowsecurity
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r';
CREATE TABLE pg_catalog.pg_indexes (schemaname NAME, tablename NAME, indexname NAME, tablespace NAME, indexdef TEXT);

-- Always empty.
CREATE TABLE pg_catalog.pg_description (objoid OID, classoid OID, objsubid INT, description TEXT);
CREATE TABLE pg_catalog.pg_shdescription (objoid OID, classoid OID, description TEXT);
CREATE TABLE pg_catalog.pg_inherits (inhrelid OID, inhparent OID, inhseqno INT, inhdetachpending BOOL);
CREATE TABLE pg_catalog.pg_depend (classid OID, objid OID, objsubid INT, refclassid OID, refobjid OID, refobjsubid INT, deptype PG_CHAR);
CREATE TABLE pg_catalog.pg_proc (oid OID, proname NAME, pronamespace OID, proowner OID, prolang OID, prokind PG_CHAR, prorettype OID,
  proargtypes TEXT, proargnames TEXT, proargmodes TEXT, proallargtypes TEXT, pronargs INT, prosrc TEXT, proisstrict BOOL, proretset BOOL);
CREATE TABLE pg_catalog.pg_enum (oid OID, enumtypid OID, enumsortorder REAL, enumlabel NAME);
CREATE TABLE pg_catalog.pg_range (rngtypid OID, rngsubtype OID, rngmultitypid OID, rngcollation OID, rngsubopc OID);
CREATE TABLE pg_catalog.pg_extension (oid OID, extname NAME, extowner OID, extnamespace OID, extrelocatable BOOL, extversion TEXT);
CREATE TABLE pg_catalog.pg_policy (oid OID, polname NAME, polrelid OID, polcmd PG_CHAR, polpermissive BOOL, polroles TEXT, polqual TEXT, polwithcheck TEXT);
CREATE TABLE pg_catalog.pg_publication (oid OID, pubname NAME, pubowner OID, puballtables BOOL, pubinsert BOOL, pubupdate BOOL, pubdelete BOOL, pubtruncate BOOL, pubviaroot BOOL);
CREATE TABLE pg_catalog.pg_publication_rel (oid OID, prpubid OID, prrelid OID, prqual TEXT, prattrs TEXT);
CREATE TABLE pg_catalog.pg_publication_namespace (oid OID, pnpubid OID, pnnspid OID);
CREATE TABLE pg_catalog.pg_statistic_ext (oid OID, stxrelid OID, stxname NAME, stxnamespace OID, stxowner OID, stxstattarget INT, stxkeys TEXT, stxkind TEXT, stxexprs TEXT);
CREATE TABLE pg_catalog.pg_rewrite (oid OID, rulename NAME, ev_class OID, ev_type PG_CHAR, ev_enabled PG_CHAR, is_instead BOOL);
CREATE TABLE pg_catalog.pg_foreign_table (ftrelid OID, ftserver OID, ftoptions TEXT);
CREATE TABLE pg_catalog.pg_foreign_server (oid OID, srvname NAME, srvowner OID, srvfdw OID, srvtype TEXT, srvversion TEXT, srvacl TEXT, srvoptions TEXT);
CREATE TABLE pg_catalog.pg_sequence (seqrelid OID, seqtypid OID, seqstart INT, seqincrement INT, seqmax INT, seqmin INT, seqcache INT, seqcycle BOOL);
CREATE TABLE pg_catalog.pg_partitioned_table (partrelid OID, partstrat PG_CHAR, partnatts INT, partdefid OID, partattrs TEXT);
CREATE TABLE pg_catalog.pg_operator (oid OID, oprname NAME, oprnamespace OID, oprleft OID, oprright OID, oprresult OID);
CREATE TABLE pg_catalog.pg_opclass (oid OID, opcmethod OID, opcname NAME, opcnamespace OID, opcintype OID, opcdefault BOOL);
CREATE TABLE pg_catalog.pg_language (oid OID, lanname NAME, lanowner OID, lanispl BOOL, lanpltrusted BOOL);
CREATE TABLE pg_catalog.pg_aggregate (aggfnoid OID, aggkind PG_CHAR, aggtransfn OID);
CREATE TABLE pg_catalog.pg_cast (oid OID, castsource OID, casttarget OID, castfunc OID, castcontext PG_CHAR, castmethod PG_CHAR);
CREATE TABLE pg_catalog.pg_event_trigger (oid OID, evtname NAME, evtevent NAME, evtowner OID, evtfoid OID, evtenabled PG_CHAR, evttags TEXT);
CREATE TABLE pg_catalog.pg_auth_members (roleid OID, member OID, grantor OID, admin_option BOOL);
CREATE TABLE pg_catalog.pg_db_role_setting (setdatabase OID, setrole OID, setconfig TEXT);
CREATE TABLE pg_catalog.pg_default_acl (oid OID, defaclrole OID, defaclnamespace OID, defaclobjtype PG_CHAR, defaclacl TEXT);
CREATE TABLE pg_catalog.pg_matviews (schemaname NAME, matviewname NAME, matviewowner NAME, definition TEXT);
CREATE TABLE pg_catalog.pg_sequences (schemaname NAME, sequencename NAME, sequenceowner NAME, data_type OID, last_value INT);
CREATE TABLE pg_catalog.pg_stat_activity (datid OID, datname NAME, pid INT, usename NAME, application_name TEXT, state TEXT, query TEXT);
CREATE TABLE pg_catalog.pg_locks (locktype TEXT, database OID, relation OID, pid INT, mode TEXT, granted BOOL);
CREATE TABLE pg_catalog.pg_stat_ssl (pid INT, ssl BOOL);
CREATE TABLE pg_catalog.pg_timezone_names (name TEXT, abbrev TEXT, utc_offset TEXT, is_dst BOOL);
CREATE TABLE pg_catalog.pg_available_extensions (name NAME, default_version TEXT, installed_version TEXT, comment TEXT);
CREATE TABLE information_schema.referential_constraints (constraint_catalog TEXT, constraint_schema TEXT, constraint_name TEXT,
  unique_constraint_catalog TEXT, unique_constraint_schema TEXT, unique_constraint_name TEXT, match_option TEXT, update_rule TEXT, delete_rule TEXT);
CREATE TABLE information_schema.sequences (sequence_catalog TEXT, sequence_schema TEXT, sequence_name TEXT, data_type TEXT);
CREATE TABLE information_schema.routines (specific_schema TEXT, specific_name TEXT, routine_schema TEXT, routine_name TEXT, routine_type TEXT, data_type TEXT);
CREATE TABLE information_schema.constraint_column_usage (table_catalog TEXT, table_schema TEXT, table_name TEXT, column_name TEXT,
  constraint_catalog TEXT, constraint_schema TEXT, constraint_name TEXT);
