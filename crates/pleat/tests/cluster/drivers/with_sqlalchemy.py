"""SQLAlchemy: a small application with its ORM, and the reflection of tables."""
import os

from sqlalchemy import Boolean, Column, Integer, String, create_engine, inspect, text
from sqlalchemy.orm import declarative_base, sessionmaker

Base = declarative_base()


class User(Base):
    __tablename__ = "sa_users"
    id = Column(Integer, primary_key=True, autoincrement=False)
    name = Column(String(50), nullable=False, index=True)
    active = Column(Boolean)


engine = create_engine(f"postgresql+psycopg2://pleat@127.0.0.1:{os.environ['PGPORT']}/pleat")
Base.metadata.create_all(engine)
Base.metadata.create_all(engine)
Session = sessionmaker(engine)
with Session.begin() as session:
    session.add_all([User(id=n, name=f"n{n}", active=n % 2 == 0) for n in range(1, 51)])
with Session() as session:
    assert session.query(User).filter(User.active.is_(True)).count() == 25
    user = session.get(User, 7)
    user.name = "seven"
    session.commit()
with Session() as session:
    assert [user.name for user in session.query(User).filter(User.name == "seven")] == ["seven"]
    session.query(User).delete()
    session.rollback()
    assert session.query(User).count() == 50
found = inspect(engine)
assert "sa_users" in found.get_table_names(), found.get_table_names()
assert found.has_table("sa_users") and not found.has_table("nowhere")
columns = {column["name"]: column for column in found.get_columns("sa_users")}
assert list(columns) == ["id", "name", "active"] and not columns["name"]["nullable"], columns
with engine.connect() as conn:
    assert conn.execute(text("SELECT :a + 1"), {"a": 1}).scalar() == 2
