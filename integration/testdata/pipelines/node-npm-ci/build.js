const fs = require("node:fs");
fs.writeFileSync("dist/app.json", JSON.stringify({ numbers: require("./app.js")(["1", "x"]) }));
console.log("built dist/app.json");
