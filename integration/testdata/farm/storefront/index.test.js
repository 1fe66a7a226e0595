const test = require("node:test");
const assert = require("node:assert");
const { app } = require("./index.js");

test("goods have a price, other things do not exist", async () => {
  const server = app.listen(0);
  try {
    const base = `http://127.0.0.1:${server.address().port}/goods/`;
    assert.deepEqual(await (await fetch(base + "tea")).json(), { name: "tea", price: 4 });
    assert.equal((await fetch(base + "gold")).status, 404);
  } finally {
    server.close();
  }
});
