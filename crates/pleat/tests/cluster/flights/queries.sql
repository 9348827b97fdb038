-- count_flights
SELECT count(*) FROM flights;
-- count_planes
SELECT count(*) AS n FROM planes;
-- count_weather
SELECT count(*) FROM weather;
-- count_airlines_and_airports
SELECT (SELECT count(*) FROM airlines) AS airlines, (SELECT count(*) FROM airports) AS airports;
-- one_plane_by_key
SELECT * FROM planes WHERE tailnum = 'N14228';
-- one_plane_by_reversed_key
SELECT model FROM planes WHERE 'N24211' = tailnum;
-- flights_of_one_plane
SELECT month, day, carrier, flight, origin, dest FROM flights WHERE tailnum = 'N14228' ORDER BY time_hour LIMIT 10;
-- flights_of_one_plane_counted
SELECT count(*), min(dep_delay), max(dep_delay), avg(arr_delay), sum(distance) FROM flights WHERE tailnum = 'N328AA';
-- key_in_a_list
SELECT tailnum, count(*) AS n FROM flights WHERE tailnum IN ('N14228', 'N24211', 'N619AA', 'N804JB', 'none') GROUP BY tailnum ORDER BY tailnum;
-- key_or_key
SELECT tailnum, seats FROM planes WHERE tailnum = 'N14228' OR tailnum = 'N24211' OR tailnum = 'nobody' ORDER BY seats, tailnum;
-- key_that_is_not_there
SELECT * FROM planes WHERE tailnum = 'N0';
-- key_contradicted
SELECT * FROM planes WHERE tailnum = 'N14228' AND tailnum = 'N24211';
-- plane_joined_inside_its_shard
SELECT f.month, f.day, p.manufacturer, p.seats FROM flights f JOIN planes p ON p.tailnum = f.tailnum WHERE f.tailnum = 'N14228' ORDER BY f.time_hour LIMIT 5;
-- flights_by_carrier
SELECT carrier, count(*) AS n FROM flights GROUP BY carrier ORDER BY n DESC, carrier;
-- flights_by_origin_and_month
SELECT origin, month, count(*) AS n, sum(distance) AS miles FROM flights GROUP BY origin, month ORDER BY origin, month;
-- delays_over_nulls
SELECT count(dep_delay), count(*), count(*) - count(dep_delay) AS missing, sum(dep_delay), avg(dep_delay), min(dep_delay), max(dep_delay), total(arr_delay) FROM flights;
-- delays_by_carrier
SELECT carrier, avg(dep_delay) AS mean, min(dep_delay), max(dep_delay), count(dep_delay) FROM flights GROUP BY carrier ORDER BY mean DESC;
-- carriers_often_late
SELECT carrier, count(*) AS late FROM flights WHERE arr_delay > 60 GROUP BY carrier HAVING count(*) > 1000 ORDER BY late DESC;
-- group_without_rows
SELECT carrier, count(*) FROM flights WHERE month = 13 GROUP BY carrier;
-- aggregates_without_rows
SELECT count(*), sum(distance), avg(distance), min(distance), max(distance), total(distance) FROM flights WHERE month = 13;
-- distinct_destinations
SELECT DISTINCT dest FROM flights ORDER BY dest;
-- distinct_pairs_counted
SELECT count(*) FROM (SELECT DISTINCT origin, dest FROM flights);
-- count_distinct
SELECT count(DISTINCT carrier) AS carriers, count(DISTINCT dest) AS destinations, count(DISTINCT tailnum) AS planes FROM flights;
-- longest_flights
SELECT DISTINCT origin, dest, distance FROM flights ORDER BY distance DESC, origin, dest LIMIT 5;
-- latest_departures
SELECT carrier, flight, tailnum, dep_delay FROM flights WHERE dep_delay IS NOT NULL ORDER BY dep_delay DESC, carrier, flight, tailnum, time_hour LIMIT 10;
-- ordered_with_offset
SELECT tailnum, year, seats FROM planes ORDER BY seats DESC, tailnum LIMIT 7 OFFSET 20;
-- offset_past_the_end
SELECT tailnum FROM planes ORDER BY tailnum LIMIT 5 OFFSET 100000;
-- limit_zero
SELECT * FROM planes ORDER BY tailnum LIMIT 0;
-- text_order
SELECT DISTINCT manufacturer FROM planes ORDER BY manufacturer;
-- text_order_ignoring_case
SELECT DISTINCT type, engine FROM planes ORDER BY engine COLLATE NOCASE DESC, type;
-- nulls_in_order
SELECT tailnum, year FROM planes ORDER BY year, tailnum LIMIT 5;
-- nulls_last
SELECT tailnum, speed FROM planes ORDER BY speed IS NULL, speed, tailnum LIMIT 8;
-- like_and_between
SELECT count(*) FROM planes WHERE model LIKE 'A3%' AND year BETWEEN 1995 AND 2005;
-- glob_and_in
SELECT tailnum FROM planes WHERE tailnum GLOB 'N1[0-2]*' AND engines IN (2, 4) ORDER BY tailnum LIMIT 6;
-- expressions
SELECT tailnum, seats * 2 + engines AS x, upper(engine), length(model), round(seats / 3.0, 2) FROM planes WHERE seats > 300 ORDER BY tailnum LIMIT 5;
-- case_expression
SELECT CASE WHEN dep_delay IS NULL THEN 'cancelled' WHEN dep_delay > 15 THEN 'late' ELSE 'fine' END AS state, count(*) AS n FROM flights GROUP BY state ORDER BY n;
-- group_by_expression
SELECT distance / 500 AS band, count(*) AS n, max(air_time) FROM flights GROUP BY band ORDER BY band;
-- group_by_position
SELECT origin, hour, count(*) FROM flights WHERE month = 2 GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 12;
-- reference_alone
SELECT name FROM airlines ORDER BY name;
-- reference_joined
SELECT a.name, count(*) AS n FROM flights f JOIN airlines a ON a.carrier = f.carrier GROUP BY a.name ORDER BY n DESC;
-- reference_twice
SELECT o.name AS origin, d.name AS dest, count(*) AS n FROM flights f JOIN airports o ON o.faa = f.origin JOIN airports d ON d.faa = f.dest GROUP BY o.name, d.name ORDER BY n DESC, origin, dest LIMIT 8;
-- left_join_missing_airports
SELECT f.dest, count(*) AS n FROM flights f LEFT JOIN airports a ON a.faa = f.dest WHERE a.faa IS NULL GROUP BY f.dest ORDER BY f.dest;
-- sharded_joined_on_the_key
SELECT p.manufacturer, count(*) AS n, avg(f.air_time) FROM flights f JOIN planes p ON p.tailnum = f.tailnum GROUP BY p.manufacturer ORDER BY n DESC, p.manufacturer LIMIT 10;
-- planes_that_never_flew
SELECT count(*) FROM planes p LEFT JOIN flights f ON f.tailnum = p.tailnum WHERE f.tailnum IS NULL;
-- flights_of_unknown_planes
SELECT count(*) FROM flights f LEFT JOIN planes p USING (tailnum) WHERE p.tailnum IS NULL;
-- join_across_shards
SELECT f.origin, round(avg(f.dep_delay), 6) AS delay, count(*) AS n FROM flights f JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour WHERE w.visib < 1 GROUP BY f.origin ORDER BY f.origin;
-- join_across_shards_on_an_expression
SELECT w.month, count(*) AS n FROM weather w JOIN planes p ON p.seats = CAST(w.temp AS INTEGER) WHERE w.day = 1 AND w.hour = 12 GROUP BY w.month ORDER BY w.month;
-- wind_by_airport
SELECT w.origin, a.name, max(w.wind_gust), avg(w.temp), min(w.pressure) FROM weather w JOIN airports a ON a.faa = w.origin GROUP BY w.origin, a.name ORDER BY w.origin;
-- self_join
SELECT count(*) FROM planes a JOIN planes b ON a.model = b.model AND a.tailnum < b.tailnum WHERE a.seats > 250;
-- exists
SELECT count(*) FROM planes p WHERE EXISTS (SELECT 1 FROM flights f WHERE f.tailnum = p.tailnum AND f.dest = 'HNL');
-- not_in
SELECT name FROM airlines WHERE carrier NOT IN (SELECT carrier FROM flights WHERE month = 1 AND dest = 'LAX') ORDER BY name;
-- scalar_subquery
SELECT tailnum, seats FROM planes WHERE seats = (SELECT max(seats) FROM planes) ORDER BY tailnum;
-- correlated_subquery
SELECT a.carrier, (SELECT count(*) FROM flights f WHERE f.carrier = a.carrier AND f.month = 12) AS december FROM airlines a ORDER BY a.carrier;
-- in_subquery_across_shards
SELECT count(*) FROM flights WHERE month = 7 AND tailnum IN (SELECT tailnum FROM planes WHERE manufacturer = 'BOEING' AND year < 1990);
-- derived_table
SELECT n, count(*) AS planes FROM (SELECT tailnum, count(*) / 100 AS n FROM flights GROUP BY tailnum) GROUP BY n ORDER BY n;
-- cte
WITH late AS (SELECT carrier, count(*) AS n FROM flights WHERE dep_delay > 120 GROUP BY carrier) SELECT a.name, late.n FROM late JOIN airlines a USING (carrier) ORDER BY late.n DESC, a.name;
-- cte_used_twice
WITH m AS (SELECT month, count(*) AS n FROM flights GROUP BY month) SELECT x.month, x.n - y.n AS change FROM m x JOIN m y ON y.month = x.month - 1 ORDER BY x.month;
-- recursive_cte
WITH RECURSIVE d(day) AS (SELECT 1 UNION ALL SELECT day + 1 FROM d WHERE day < 7) SELECT d.day, count(f.flight) FROM d LEFT JOIN flights f ON f.day = d.day AND f.month = 3 GROUP BY d.day ORDER BY d.day;
-- union_all
SELECT 'planes' AS what, count(*) AS n FROM planes UNION ALL SELECT 'weather', count(*) FROM weather UNION ALL SELECT 'airlines', count(*) FROM airlines ORDER BY what;
-- union_distinct
SELECT origin AS place FROM weather UNION SELECT dest FROM flights WHERE month = 1 AND day = 1 ORDER BY place LIMIT 12;
-- intersect
SELECT dest FROM flights WHERE month = 1 INTERSECT SELECT faa FROM airports WHERE alt > 4000 ORDER BY 1;
-- except
SELECT faa FROM airports WHERE tz = -5 AND alt < 20 EXCEPT SELECT dest FROM flights ORDER BY faa LIMIT 10;
-- window_rank
SELECT * FROM (SELECT manufacturer, model, count(*) AS n, rank() OVER (PARTITION BY manufacturer ORDER BY count(*) DESC) AS place FROM planes GROUP BY manufacturer, model) WHERE place <= 2 ORDER BY manufacturer, place, model LIMIT 20;
-- window_running_sum
SELECT month, n, sum(n) OVER (ORDER BY month) AS so_far FROM (SELECT month, count(*) AS n FROM flights GROUP BY month) ORDER BY month;
-- window_lag
SELECT time_hour, temp, temp - lag(temp) OVER (ORDER BY time_hour) AS change FROM weather WHERE origin = 'JFK' AND month = 6 AND day = 1 ORDER BY time_hour;
-- window_partition
SELECT origin, day, mean, row_number() OVER (PARTITION BY origin ORDER BY mean DESC, day) AS place FROM (SELECT origin, day, avg(temp) AS mean FROM weather WHERE month = 1 GROUP BY origin, day) ORDER BY origin, place LIMIT 9;
-- window_frame
SELECT day, n, avg(n) OVER (ORDER BY day ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS smooth FROM (SELECT day, count(*) AS n FROM flights WHERE month = 4 GROUP BY day) ORDER BY day;
-- filter_clause
SELECT origin, count(*) FILTER (WHERE arr_delay > 0) AS late, count(*) FILTER (WHERE arr_delay IS NULL) AS unknown FROM flights GROUP BY origin ORDER BY origin;
-- dates
SELECT strftime('%w', time_hour) AS weekday, count(*) AS n FROM flights GROUP BY weekday ORDER BY weekday;
-- date_arithmetic
SELECT date(time_hour, '+1 day') AS next, count(*) FROM flights WHERE month = 2 AND day > 26 GROUP BY next ORDER BY next;
-- typeof
SELECT typeof(year), typeof(temp), typeof(wind_gust), count(*) FROM weather GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
-- coalesce_and_nullif
SELECT coalesce(speed, -1) AS s, nullif(engines, 2) AS e, count(*) FROM planes GROUP BY s, e ORDER BY s, e;
-- is_distinct
SELECT count(*) FROM flights WHERE dep_delay IS DISTINCT FROM arr_delay;
-- values_of_floats
SELECT sum(temp), avg(humid), max(precip), min(pressure), total(visib) FROM weather;
-- group_concat_ordered_inside
SELECT origin, length(group_concat(hour)) FROM (SELECT origin, hour FROM weather WHERE month = 5 AND day = 5 ORDER BY hour) GROUP BY origin ORDER BY origin;
-- having_without_group
SELECT max(seats) FROM planes HAVING count(*) > 10;
-- compound_of_keys
SELECT tailnum FROM planes WHERE tailnum = 'N14228' UNION ALL SELECT tailnum FROM planes WHERE tailnum = 'N24211';
-- no_table
SELECT 1 + 1 AS two, 'a' || 'b' AS ab, NULL IS NULL AS yes;
-- whole_rows
SELECT * FROM weather WHERE month = 3 AND day = 9 AND hour BETWEEN 1 AND 4;
