// dcmjs-dimse on the command line: a DICOM implementation by others, for the tests to talk to.
//
//   node dimse.mjs HOST PORT CALLING CALLED < script.json
//   node dimse.mjs listen PORT AETITLE
//
// script.json is a list of operations for one association, or a list of such lists for one
// association each, played one after the other:
//
//   {"op": "echo"}
//   {"op": "find", "keys": {…}, "cancelAfter": 3}             sopClass: Modality Worklist
//   {"op": "n-create", "sopClass": …, "instance": …, "dataset": {…}}
//   {"op": "n-set", "sopClass": …, "instance": …, "dataset": {…}}
//   {"op": "n-get", "sopClass": …, "instance": …, "attributes": ["PatientName"]}
//   {"op": "n-action", "sopClass": …, "instance": …, "type": 1, "dataset": {…}}
//   {"op": "n-delete", "sopClass": …, "instance": …}
//
// N-services without "sopClass" mean Modality Performed Procedure Step. Data sets are keyed by
// DICOM keyword, or are DICOM JSON. "charset" sets Specific Character Set and how text is encoded;
// "encoding" alone sends text in an encoding that the data set does not declare. "meta" names the
// SOP class whose presentation context is used, where that is another one (UPS Push over UPS Pull).
//
// Each response is one JSON line: index (of the operation), op, status, dataset, errorComment,
// sopInstance, command (all elements of group 0000). What went wrong is one too, with "error".
// The listener takes any association on 127.0.0.1 (port 0: a free one), prints {"listening": port}
// and then a line for each N-EVENT-REPORT: event, sopClass, sopInstance, dataset, calling, called.

import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const require = createRequire(import.meta.url); // the copy of dcmjs that dcmjs-dimse itself uses
const iconv = require("iconv-lite");
const { DicomMessage, DicomMetaDictionary, ReadBufferStream, WriteBufferStream } =
  require("dcmjs").data;
const { Client, Dataset, Scp, Server, constants, log, requests, responses } =
  require("dcmjs-dimse");
const { PresentationContextResult, SopClass, Status, TransferSyntax } = constants;

const PENDING_WITH_WARNING = 0xff01; // PS3.4 K.4.1.1.4: some optional keys are not supported
const TIMEOUTS_MS = { connectTimeout: 10000, associationTimeout: 10000, pduTimeout: 20000 };
const ENCODINGS = {
  "ISO_IR 100": "latin1",
  "ISO_IR 192": "utf8",
  GB18030: "gb18030",
  GBK: "gbk",
  "ISO_IR 13": "shift_jis",
};

log.setLevel("warn"); // the levels below go to standard output, which is ours

// --- What dcmjs 0.50 and dcmjs-dimse 0.3 leave out ---------------------------------------------

// dcmjs writes all text as UTF-8, whatever Specific Character Set says.
let textEncoding = "utf8";
WriteBufferStream.prototype.writeUTF8String = function (value) {
  const bytes = iconv.encode(String(value), textEncoding);
  this.checkSize(bytes.byteLength);
  this.view.writeBuffer(new Uint8Array(bytes), this.offset);
  return this.increment(bytes.byteLength);
};

// dcmjs reads sequence items as if Specific Character Set of the data set did not hold for them.
const more = ReadBufferStream.prototype.more;
ReadBufferStream.prototype.more = function (length) {
  const stream = more.call(this, length);
  stream.setDecoder(this.decoder);
  return stream;
};

// dcmjs replaces Specific Character Set by ISO_IR 192 after reading; tests ask what was sent.
const readElements = Dataset.prototype._fromElementsBuffer;
Dataset.prototype._fromElementsBuffer = function (buffer, syntax, options) {
  const elements = readElements.call(this, buffer, syntax, options);
  if ("SpecificCharacterSet" in elements) {
    elements.SpecificCharacterSet = characterSetOf(buffer, syntax) ?? elements.SpecificCharacterSet;
  }
  return elements;
};

// dcmjs-dimse keeps the bytes of a message without data set and reads them again with the next
// message, whose missing elements (Error Comment) then seem to be there.
const Network = Object.getPrototypeOf(Scp);
const performDimse = Network.prototype._performDimse;
Network.prototype._performDimse = function (context, message) {
  this.dimseStream = undefined;
  return performDimse.call(this, context, message);
};

// --- Data sets ---------------------------------------------------------------------------------

/** Specific Character Set as it stands in the encoded data set, where it is the first element. */
function characterSetOf(buffer, syntax) {
  if (buffer.readUInt32LE(0) !== 0x00050008) return undefined;
  const implicit = syntax === TransferSyntax.ImplicitVRLittleEndian;
  const length = implicit ? buffer.readUInt32LE(4) : buffer.readUInt16LE(6);
  return buffer.toString("latin1", 8, 8 + length).trim();
}

/** A data set that is written as it stands in the script, in the encoding asked for. */
class ScriptedDataset extends Dataset {
  constructor(dicomJson, encoding) {
    super();
    this.dicomJson = dicomJson;
    this.encoding = encoding;
  }

  getDenaturalizedDataset(writeOptions) {
    const stream = new WriteBufferStream();
    textEncoding = this.encoding;
    try {
      DicomMessage.write(this.dicomJson, stream, this.getTransferSyntaxUid(), writeOptions ?? {});
    } finally {
      textEncoding = "utf8";
    }
    return Buffer.from(stream.getBuffer());
  }
}

function scriptedDataset(operation) {
  const elements = operation.keys ?? operation.dataset;
  if (elements === undefined) return undefined;
  const dicomJson = isDicomJson(elements)
    ? completed(elements)
    : DicomMetaDictionary.denaturalizeDataset(elements);
  if (operation.charset) dicomJson["00080005"] = { vr: "CS", Value: [operation.charset] };
  const declared = dicomJson["00080005"]?.Value?.[0];
  return new ScriptedDataset(dicomJson, operation.encoding ?? encodingOf(declared));
}

function encodingOf(characterSet) {
  if (!characterSet) return "utf8";
  if (characterSet in ENCODINGS) return ENCODINGS[characterSet];
  throw new Error(`dimse.mjs cannot write ${characterSet}, only ${Object.keys(ENCODINGS)}`);
}

function isDicomJson(elements) {
  return Object.keys(elements).every((key) => /^[0-9A-Fa-f]{8}$/.test(key));
}

/** DICOM JSON with a Value everywhere and numbers as text, which is what dcmjs writes from. */
function completed(dicomJson) {
  const value = (one) => {
    if (typeof one === "number") return String(one);
    return one !== null && typeof one === "object" && isDicomJson(one) ? completed(one) : one;
  };
  const element = ({ vr, Value }) => ({ vr, Value: (Value ?? []).map(value) });
  return Object.fromEntries(Object.entries(dicomJson).map(([tag, one]) => [tag, element(one)]));
}

// --- Modality (SCU) ----------------------------------------------------------------------------

const REQUESTS = {
  echo: () => new requests.CEchoRequest(),
  find: (op) => {
    const request = new requests.CFindRequest();
    request.setAffectedSopClassUid(op.sopClass ?? SopClass.ModalityWorklistInformationModelFind);
    return request;
  },
  "n-create": (op) => new requests.NCreateRequest(sopClassOf(op), op.instance, op.meta),
  "n-set": (op) => new requests.NSetRequest(sopClassOf(op), op.instance, op.meta),
  "n-get": (op) =>
    new requests.NGetRequest(sopClassOf(op), op.instance, op.attributes ?? [], op.meta),
  "n-action": (op) => new requests.NActionRequest(sopClassOf(op), op.instance, op.type, op.meta),
  "n-delete": (op) => new requests.NDeleteRequest(sopClassOf(op), op.instance, op.meta),
};

function sopClassOf(operation) {
  return operation.sopClass ?? SopClass.ModalityPerformedProcedureStep;
}

function requestFor(operation) {
  if (!(operation.op in REQUESTS)) {
    throw new Error(`"op" is ${operation.op}, not one of ${Object.keys(REQUESTS)}`);
  }
  const request = REQUESTS[operation.op](operation);
  const dataset = scriptedDataset(operation);
  if (dataset) request.setDataset(dataset);
  return request;
}

/** One operation on its way: prints the responses and knows whether one came. */
class Exchange {
  constructor(operation, index, client) {
    this.operation = operation;
    this.index = index;
    this.client = client;
    this.answers = 0;
    this.request = requestFor(operation);
    this.request.on("response", (response) => this.received(response));
    this.waitForPendingWithWarning();
  }

  /** dcmjs-dimse takes FF01 for the last response; it is one of many. */
  waitForPendingWithWarning() {
    const done = this.request.raiseDoneEvent.bind(this.request);
    this.request.raiseDoneEvent = () => {
      if (this.status !== PENDING_WITH_WARNING) done();
    };
  }

  received(response) {
    this.answers += 1;
    this.status = response.getStatus();
    this.print({
      status: this.status,
      dataset: response.getDataset()?.getElements(),
      errorComment: response.getErrorComment(),
      sopInstance: response.getAffectedSopInstanceUid(),
      command: response.getCommandDataset().getElements(),
    });
    if (this.answers === this.operation.cancelAfter) this.client.cancel(this.request);
  }

  /** The data set is written in the transfer syntax that was accepted for it. */
  negotiated(association) {
    const context = association.getAcceptedPresentationContextFromRequest(this.request);
    this.refused = context === undefined;
    this.request.getDataset()?.setTransferSyntaxUid(context?.getAcceptedTransferSyntaxUid());
  }

  ended() {
    if (this.answers > 0) return;
    this.print({ error: this.refused ? "presentation context not accepted" : "no response" });
  }

  print(line) {
    print({ index: this.index, op: this.operation.op, ...line });
  }
}

/** Plays `operations` on one association; resolves when the connection is closed. */
function associate({ host, port, calling, called }, operations, firstIndex) {
  const client = new Client();
  const exchanges = operations.map((one, i) => new Exchange(one, firstIndex + i, client));
  exchanges.forEach((exchange) => client.addRequest(exchange.request));
  client.on("associationAccepted", (association) =>
    exchanges.forEach((exchange) => exchange.negotiated(association)),
  );
  client.on("associationRejected", (rejected) => print({ error: "rejected", ...rejected }));
  client.on("networkError", (error) => print({ error: error.message }));
  return new Promise((resolve) => {
    client.on("closed", () => {
      exchanges.forEach((exchange) => exchange.ended());
      resolve();
    });
    client.send(host, port, calling, called, TIMEOUTS_MS);
    client.network.on("abort", (abort) => {
      print({ error: "aborted", ...abort });
      client.network?.socket.end();
    });
  });
}

async function play(target, script) {
  const associations = Array.isArray(script[0]) ? script : [script];
  let index = 0;
  for (const operations of associations) {
    await associate(target, operations, index);
    index += operations.length;
  }
}

// --- Listener (SCP of associations, user of events) --------------------------------------------

const LITTLE_ENDIAN = [
  TransferSyntax.ExplicitVRLittleEndian,
  TransferSyntax.ImplicitVRLittleEndian,
];

class Listener extends Scp {
  associationRequested(association) {
    association.getPresentationContexts().forEach(({ id }) => {
      const context = association.getPresentationContext(id);
      const syntax = context.getTransferSyntaxUids().find((uid) => LITTLE_ENDIAN.includes(uid));
      if (syntax) context.setResult(PresentationContextResult.Accept, syntax);
      else context.setResult(PresentationContextResult.RejectTransferSyntaxesNotSupported);
    });
    this.sendAssociationAccept();
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }

  cEchoRequest(request, callback) {
    callback(successful(responses.CEchoResponse.fromRequest(request)));
  }

  nEventReportRequest(request, callback) {
    print({
      event: request.getEventTypeId(),
      sopClass: request.getAffectedSopClassUid(),
      sopInstance: request.getAffectedSopInstanceUid(),
      dataset: request.getDataset()?.getElements(),
      calling: this.association.getCallingAeTitle(),
      called: this.association.getCalledAeTitle(),
    });
    callback(successful(responses.NEventReportResponse.fromRequest(request)));
  }

  abort(source, reason) {
    print({ error: "aborted", source, reason });
  }
}

function successful(response) {
  response.setStatus(Status.Success);
  return response;
}

function listen(port, aeTitle) {
  const server = new Server(Listener);
  server.on("networkError", (error) => print({ error: error.message }));
  server.on("listening", () => print({ listening: server.server.address().port, aeTitle }));
  server.listen({ port, host: "127.0.0.1" });
}

// --- Command line ------------------------------------------------------------------------------

function print(line) {
  const withoutOwnNotes = (key, value) => (key === "_vrMap" ? undefined : value);
  process.stdout.write(JSON.stringify(line, withoutOwnNotes) + "\n");
}

const [first, port, third, fourth] = process.argv.slice(2);
if (first === "listen" && third) {
  listen(Number(port), third);
} else if (fourth) {
  const target = { host: first, port: Number(port), calling: third, called: fourth };
  await play(target, JSON.parse(await text(process.stdin)));
} else {
  console.error("usage: node dimse.mjs HOST PORT CALLING CALLED < script.json");
  console.error("       node dimse.mjs listen PORT AETITLE");
  process.exitCode = 2;
}
