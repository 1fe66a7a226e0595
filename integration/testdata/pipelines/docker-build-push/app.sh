#!/bin/sh
exec cat /message
