/** The bare-socket bound of `bench -- getpage`: answers every getPages request with the same 8 KiB, ports on stdout. */
import {listenFrames, sendJson} from '#runtime/net.ts';
import {pageFrame} from '#wire/pages.ts';

const onePage = Buffer.from([1, 0, 0, 0]);
const page = Buffer.alloc(8192, 0x5a);
const listener = await listenFrames({host: '127.0.0.1', port: 0}, (connection) => {
  connection.onFrame = (type, payload) => {
    if (type === pageFrame.hello) sendJson(connection, pageFrame.welcome, {});
    else connection.send(pageFrame.pages, Buffer.concat([payload.subarray(0, 4), onePage]), page);
  };
});
process.stdout.write(`${JSON.stringify({port: listener.port})}\n`);
