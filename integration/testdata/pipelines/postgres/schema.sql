CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL);
INSERT INTO people (name) VALUES ('Ada'), ('Grace'), ('Edsger');
