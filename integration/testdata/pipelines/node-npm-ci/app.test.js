const test = require("node:test");
const assert = require("node:assert");
const count = require("./app.js");

test("counts numbers", () => assert.strictEqual(count(["1", "a", "2"]), 2));
