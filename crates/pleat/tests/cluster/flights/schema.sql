CREATE TABLE flights(
  year INTEGER NOT NULL, month INTEGER NOT NULL, day INTEGER NOT NULL,
  dep_time INTEGER, sched_dep_time INTEGER, dep_delay INTEGER,
  arr_time INTEGER, sched_arr_time INTEGER, arr_delay INTEGER,
  carrier TEXT NOT NULL, flight INTEGER NOT NULL, tailnum TEXT, origin TEXT NOT NULL, dest TEXT NOT NULL,
  air_time INTEGER, distance INTEGER, hour INTEGER, minute INTEGER, time_hour TEXT NOT NULL,
  PRIMARY KEY (tailnum, time_hour, carrier, flight)
) SHARD BY (tailnum);
CREATE TABLE planes(
  tailnum TEXT PRIMARY KEY, year INTEGER, type TEXT, manufacturer TEXT, model TEXT,
  engines INTEGER, seats INTEGER, speed INTEGER, engine TEXT
) SHARD BY (tailnum);
CREATE TABLE weather(
  origin TEXT, year INTEGER, month INTEGER, day INTEGER, hour INTEGER,
  temp REAL, dewp REAL, humid REAL, wind_dir INTEGER, wind_speed REAL, wind_gust REAL,
  precip REAL, pressure REAL, visib REAL, time_hour TEXT,
  PRIMARY KEY (origin, time_hour)
) SHARD BY (origin);
CREATE TABLE airlines(carrier TEXT PRIMARY KEY, name TEXT NOT NULL) REFERENCE;
CREATE TABLE airports(
  faa TEXT PRIMARY KEY, name TEXT NOT NULL, lat REAL, lon REAL, alt INTEGER, tz INTEGER, dst TEXT, tzone TEXT
) REFERENCE;
