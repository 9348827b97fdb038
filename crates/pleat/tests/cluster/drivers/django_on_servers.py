"""Django on shards that are PostgreSQL servers: its migrations, its ORM, and a model whose table is sharded."""

import os
import uuid

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": os.environ["PGPORT"],
            "USER": "pleat",
            "NAME": "pleat",
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    SECRET_KEY="for this test",
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.models import Count

call_command("migrate", verbosity=0)
user = User.objects.create_user("ada", password="x")
user.groups.add(Group.objects.create(name="readers"))
assert User.objects.filter(groups__name="readers").count() == 1
try:
    with transaction.atomic():
        User.objects.create_user("bob")
        raise ValueError
except ValueError:
    pass
assert User.objects.count() == 1


class Visit(models.Model):
    id = models.UUIDField(primary_key=True)
    visitor = models.IntegerField()
    at = models.DateTimeField(auto_now_add=True)
    data = models.JSONField(default=dict)

    class Meta:
        app_label = "visits"
        managed = False
        db_table = "visits"


with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE visits (id uuid PRIMARY KEY, visitor int, at timestamptz, data jsonb) SHARD BY (id)")
Visit.objects.bulk_create([Visit(id=uuid.UUID(int=number), visitor=number % 5, data={"n": number}) for number in range(50)])
counted = Visit.objects.values("visitor").annotate(count=Count("id")).order_by("visitor").values_list("visitor", "count")
assert list(counted) == [(number, 10) for number in range(5)], list(counted)
visit = Visit.objects.get(id=uuid.UUID(int=7))
visit.visitor = 77
visit.save()
assert Visit.objects.get(visitor=77).id == visit.id
with transaction.atomic():
    savepoint = transaction.savepoint()
    Visit.objects.filter(visitor=1).delete()
    transaction.savepoint_rollback(savepoint)
assert Visit.objects.filter(data__n__gte=40).count() == 10
# Through a cursor on the server's side.
assert sorted(visit.data["n"] for visit in Visit.objects.all().iterator(chunk_size=7)) == list(range(50))
with transaction.atomic():
    numbers = [visit.data["n"] for visit in Visit.objects.order_by("-data__n").iterator(chunk_size=7)]
assert numbers == list(reversed(range(50)))
