//! Verified I/O over several connections of one session: every sector says what was written to it last, while
//! connections are lost and take each other's place, task sets are aborted and units reset. What was answered GOOD is
//! there; what was not answered is there or not, sector by sector, but does not come later.

use perf::client::Client;
use perf::login::Wishes;
use perf::pdu::{self, cdb};

use crate::connections::{joined, server};
use crate::server::{Server, count};

const CONNECTIONS: usize = 4;
const PLACES: usize = 24;
const PLACE_SECTORS: usize = 48;
const ABORT_TASK_SET: u8 = 2;
const LOGICAL_UNIT_RESET: u8 = 5;

/// What one sector may hold, by the numbers of writes; the last of several is not known to be there.
type Possible = Vec<u32>;

struct Game<'a> {
    server: &'a Server,
    iqn: String,
    clients: Vec<Client>,
    /// CmdSN belongs to the session.
    cmd_sn: u32,
    sectors: Vec<Possible>,
    writes: u32,
    seed: u64,
}

/// What a write leaves in one sector.
fn sector_of(place: usize, index: usize, write: u32) -> Vec<u8> {
    let number = (place * PLACE_SECTORS + index) as u64;
    let word = (number << 32 | u64::from(write)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = if write == 0 { 0 } else { word };
    word.to_be_bytes().repeat(64)
}

fn bytes_of(place: usize, write: u32) -> Vec<u8> {
    (0..PLACE_SECTORS).flat_map(|index| sector_of(place, index, write)).collect()
}

impl Game<'_> {
    fn draw(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    /// Do something on one connection.
    fn on<T>(&mut self, connection: usize, what: impl FnOnce(&mut Client) -> T) -> T {
        let client = &mut self.clients[connection];
        client.wire.cmd_sn = self.cmd_sn;
        let result = what(client);
        self.cmd_sn = client.wire.cmd_sn;
        result
    }

    /// Send a WRITE; its tag and number. Nothing of it is asked for: all its data goes with it.
    fn start_write(&mut self, connection: usize, place: usize) -> (u32, u32) {
        self.writes += 1;
        let number = self.writes;
        let lba = (place * PLACE_SECTORS) as u64;
        let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, lba, PLACE_SECTORS as u32, false);
        let tag = self.on(connection, |client| client.start(0, &cdb, &bytes_of(place, number), 0)).expect("sent");
        (tag, number)
    }

    fn written(&mut self, place: usize, number: u32, is_certain: bool) {
        for sector in &mut self.sectors[place * PLACE_SECTORS..][..PLACE_SECTORS] {
            if is_certain {
                sector.clear();
            }
            sector.push(number);
        }
    }

    /// Different places, one for each connection.
    fn places(&mut self) -> Vec<usize> {
        let first = self.draw(PLACES);
        (0..CONNECTIONS).map(|connection| (first + connection * 5) % PLACES).collect()
    }

    /// Read a place; what is there stays.
    fn look(&mut self, connection: usize, place: usize) {
        let lba = (place * PLACE_SECTORS) as u64;
        let cdb = pdu::cdb_transfer_16(cdb::READ_16, lba, PLACE_SECTORS as u32, false);
        let answer = self.on(connection, |client| client.read(0, &cdb, 512 * PLACE_SECTORS as u32)).expect("an answer");
        assert_eq!((answer.status, answer.data.len()), (0, 512 * PLACE_SECTORS), "{answer:?}");
        for (index, found) in answer.data.chunks(512).enumerate() {
            let possible = &mut self.sectors[place * PLACE_SECTORS + index];
            let is_it = |write: &u32| sector_of(place, index, *write) == *found;
            let write = possible.iter().copied().find(is_it);
            let write = write.unwrap_or_else(|| panic!("place {place}, sector {index}: none of {possible:?}"));
            *possible = vec![write];
        }
    }

    fn write_everywhere(&mut self) {
        let places = self.places();
        let started: Vec<_> = (0..CONNECTIONS).map(|at| self.start_write(at, places[at])).collect();
        let first = self.draw(CONNECTIONS);
        for connection in (0..CONNECTIONS).map(|at| (at + first) % CONNECTIONS) {
            let (tag, number) = started[connection];
            let answer = self.clients[connection].finish(tag).expect("an answer");
            assert_eq!(answer.status, 0, "{answer:?}");
            self.written(places[connection], number, true);
        }
    }

    /// Connections are lost with writes that were not answered, and come back before their end has been seen, or after.
    fn lose(&mut self) {
        let connection = self.draw(CONNECTIONS);
        let places = self.places();
        let (_, lost) = self.start_write(connection, places[0]);
        // Its command has been taken: a later one has been answered.
        let (tag, number) = self.start_write(connection, places[1]);
        let answer = self.clients[connection].finish(tag).expect("an answer");
        assert_eq!(answer.status, 0, "{answer:?}");
        self.written(places[1], number, true);
        let (_, also_lost) = self.start_write((connection + 1) % CONNECTIONS, places[2]);
        self.written(places[0], lost, false);
        self.written(places[2], also_lost, false);
        for gone in [connection, (connection + 1) % CONNECTIONS] {
            self.come_back(gone);
        }
        // From here on nothing of either is written: what is found stays.
        for place in [places[0], places[2]] {
            self.look((connection + 2) % CONNECTIONS, place);
        }
    }

    fn come_back(&mut self, connection: usize) {
        let of = (connection + 1) % CONNECTIONS;
        if self.draw(2) == 0 {
            let _ = self.clients[connection].wire.socket.shutdown(std::net::Shutdown::Both);
        }
        self.clients[of].wire.cmd_sn = self.cmd_sn;
        let new = joined(self.server, &self.iqn, &self.clients[of], connection as u16).expect("its place");
        self.clients[connection] = new;
    }

    /// A function on one connection that ends what the others have sent.
    fn manage(&mut self, function: u8) {
        let places = self.places();
        let started: Vec<_> = (0..CONNECTIONS).map(|at| self.start_write(at, places[at])).collect();
        let connection = self.draw(CONNECTIONS);
        let response = self.on(connection, |client| client.task_management(function, 0, None)).expect("an answer");
        assert_eq!(response, 0, "function {function}");
        for (at, (tag, number)) in started.into_iter().enumerate() {
            self.clients[at].forget(tag);
            self.written(places[at], number, false);
        }
        if function == LOGICAL_UNIT_RESET {
            self.on(connection, |client| client.settle(0)).expect("a unit");
        }
        for place in places {
            let by = self.draw(CONNECTIONS);
            self.look(by, place);
        }
    }
}

#[test]
fn verified_io_over_four_connections_that_come_and_go() {
    let (server, iqn) = server(8);
    for seed in 0..count("LUNARING_SESSION_IO_SEEDS", 2) {
        let wishes = Wishes { connections_max: 8, initial_r2t: false, ..Wishes::to_target(&iqn) };
        let mut leading = Client::ready(server.portals[0], &wishes, 0).expect("a session");
        let blank = vec![0; 512 * PLACE_SECTORS];
        for place in 0..PLACES {
            let lba = (place * PLACE_SECTORS) as u64;
            let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, lba, PLACE_SECTORS as u32, false);
            assert_eq!(leading.write(0, &cdb, &blank).expect("an answer").status, 0);
        }
        let cmd_sn = leading.wire.cmd_sn;
        let sectors = vec![vec![0]; PLACES * PLACE_SECTORS];
        let clients = vec![leading];
        let mut game = Game { server: &server, iqn: iqn.clone(), clients, cmd_sn, sectors, writes: 0, seed };
        for connection in 1..CONNECTIONS as u16 {
            game.clients[0].wire.cmd_sn = game.cmd_sn;
            let new = joined(&server, &iqn, &game.clients[0], connection).expect("a connection");
            game.clients.push(new);
        }
        for _ in 0..100 {
            match game.draw(10) {
                0 => game.manage(ABORT_TASK_SET),
                1 => game.manage(LOGICAL_UNIT_RESET),
                2 | 3 => game.lose(),
                4 => {
                    let (connection, place) = (game.draw(CONNECTIONS), game.draw(PLACES));
                    game.look(connection, place);
                }
                _ => game.write_everywhere(),
            }
        }
        for place in 0..PLACES {
            let connection = game.draw(CONNECTIONS);
            game.look(connection, place);
        }
        assert_eq!(game.clients[0].parameters.tsih, game.clients[3].parameters.tsih, "it is one session still");
    }
    server.ok(&["disk", "check", "several"]);
}
