"""Transfers between accounts on several shards, by clients that connect again when a server or a node is gone.

Prints how many transfers were committed, and of how many that is not known. Ends after a number of attempts."""

import os
import random
import sys
import threading

import psycopg2

ACCOUNTS = 60
CLIENTS = 8
ATTEMPTS = int(sys.argv[1])


def connect():
    return psycopg2.connect(host="127.0.0.1", port=os.environ["PGPORT"], user="pleat", dbname="pleat", connect_timeout=30)


committed, unknown, failed = [0] * CLIENTS, [0] * CLIENTS, [0] * CLIENTS


def client(number):
    chance = random.Random(number)
    connection = None
    for attempt in range(ATTEMPTS):
        asked = False
        try:
            if connection is None or connection.closed:
                connection = connect()
            source, target = chance.sample(range(ACCOUNTS), 2)
            # In order, so that two transfers don't wait for each other on two servers.
            with connection.cursor() as cursor:
                for account in sorted((source, target)):
                    change = -1 if account == source else 1
                    cursor.execute("UPDATE bank SET balance = balance + %s WHERE id = %s", (change, account))
                cursor.execute("INSERT INTO ledger VALUES (%s, %s)", (number * ATTEMPTS + attempt, source))
            asked = True
            connection.commit()
            committed[number] += 1
        except psycopg2.Error:
            (unknown if asked else failed)[number] += 1
            try:
                connection.rollback()
            except Exception:
                connection = None


threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(committed), sum(unknown), sum(failed))
